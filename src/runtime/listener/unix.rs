//! Unix sockets. All shards accept from one listening socket, each through a descriptor of its own: the
//! kernel wakes one of those that wait.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use super::BACKLOG;

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// The file of a Unix socket, which is removed when the value is dropped, unless another process has
/// replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    // Kept open, so that no other file gets the inode.
    file: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let identity = |file: Metadata| (file.dev(), file.ino());
        let there = fs::symlink_metadata(&self.path).map(identity).ok();
        if there.is_some() && there == self.file.metadata().map(identity).ok() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on a Unix socket, with one descriptor for each shard. Replaces the file of a process that has
/// ended.
///
/// # Errors
/// A process listens there, or the file is no socket.
pub(super) fn listen(path: &Path, shards: usize) -> io::Result<(SocketFile, Vec<Socket>)> {
    let address = SockAddr::unix(path)?;
    remove_stale(path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&address)?;
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let file = SocketFile { path: path.to_owned(), file };
    // Nobody can connect before the socket listens.
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    let mut sockets = vec![socket];
    for _ in 1..shards {
        sockets.push(sockets[0].try_clone()?);
    }
    Ok((file, sockets))
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    if !file.file_type().is_socket() {
        let why = "there is a file that is no socket";
        return Err(io::Error::new(ErrorKind::AlreadyExists, why));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full backlog must not block the start.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// A path in a folder of its own, removed on drop.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let folder =
                std::env::temp_dir().join(format!("gridcast-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).expect("a folder");
            Self(folder)
        }

        fn path(&self) -> PathBuf {
            self.0.join("socket")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_socket_is_for_owner_and_group_and_its_file_goes_with_it() {
        let place = Place::new("unix-mode");
        let (file, sockets) = listen(&place.path(), 3).expect("nobody listens");
        assert_eq!(sockets.len(), 3);
        let mode = fs::metadata(place.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        UnixStream::connect(place.path()).expect("it listens");
        drop((file, sockets));
        assert!(!place.path().exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let place = Place::new("unix-stale");
        drop(UnixListener::bind(place.path()).expect("nobody listens"));
        assert!(place.path().exists(), "the file stays");
        let (first, sockets) = listen(&place.path(), 1).expect("nobody listens any more");
        let error = listen(&place.path(), 1).expect_err("somebody listens");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        UnixStream::connect(place.path()).expect("it still listens");
        drop(sockets);
        let second = listen(&place.path(), 1).expect("nobody listens any more");
        drop(first);
        assert!(place.path().exists(), "it is another's by now");
        drop(second);
        assert!(!place.path().exists());
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let place = Place::new("unix-file");
        fs::write(place.path(), "precious").expect("the folder is there");
        let error = listen(&place.path(), 1).expect_err("it is no socket");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(place.path()).expect("it is there"), "precious");
    }
}
