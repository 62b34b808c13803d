//! The choice of the driver, as a process that may not use io_uring sees it.
//!
//! The filters are like those of container runtimes: a seccomp program that the server inherits.

// A filter is installed between fork and exec.
#![allow(unsafe_code)]

mod support;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{BPF_ABS, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
use support::{CONFIG, DRIVER, Process, Server, command, config_file};

/// The kernel's answer to the calls of io_uring.
#[derive(Clone, Copy)]
enum Answer {
    Error(i32),
    /// Kills the process.
    Kill,
}

/// Makes a command start with this driver, as a user without other processes, who may lock so much memory.
fn as_user(command: &mut Command, locked_bytes: u64, driver: &str) {
    let user = 40_000 + std::process::id() % 20_000;
    command.env(DRIVER, driver).uid(user).gid(user);
    let limit = libc::rlimit { rlim_cur: locked_bytes, rlim_max: locked_bytes };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

const FIRST: u32 = libc::SYS_io_uring_setup as u32;
const LAST: u32 = libc::SYS_io_uring_register as u32;

// The calls are setup, enter and register, in this order.
const _: () = assert!(libc::SYS_io_uring_enter as u32 == FIRST + 1 && LAST == FIRST + 2);

/// A program that answers the calls of io_uring, and allows all others.
fn filter(answer: Answer) -> [sock_filter; 5] {
    let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let answer = match answer {
        Answer::Error(code) => libc::SECCOMP_RET_ERRNO | code as u32,
        Answer::Kill => libc::SECCOMP_RET_KILL_PROCESS,
    };
    [
        // The number of the call is the first field of seccomp_data.
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JGE | BPF_K, 0, 2, FIRST),
        step(BPF_JMP | BPF_JGE | BPF_K, 1, 0, LAST + 1),
        step(BPF_RET | BPF_K, 0, 0, answer),
        step(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn install(filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the calls read their arguments, and the program lives until they return.
    let is_installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if is_installed { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a command start with a filter, and with this driver.
fn restrict(command: &mut Command, answer: Answer, driver: &str) {
    let filter = filter(answer);
    command.env(DRIVER, driver);
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(move || install(&filter)) };
}

/// Whether this machine allows io_uring. If not, the call fails before the kernel looks at its argument.
fn is_allowed() -> bool {
    // SAFETY: the kernel checks the pointer, and writes nothing to this one.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Sends something through both shards, and between two clients.
#[track_caller]
fn expect_service(server: &Server) {
    let mut devices: Vec<_> = (0..8).map(|_| server.device("/ws?channels=news")).collect();
    assert_eq!(server.publish("news", "hello"), (8, 0));
    for device in &mut devices {
        assert_eq!(device.text(), "hello");
    }
    let mut echo = server.device("/echo");
    echo.send_text(&"x".repeat(1 << 20));
    assert_eq!(echo.text(), "x".repeat(1 << 20));
}

fn driver_of(server: &Server) -> String {
    let text = server.get("/metrics").body;
    let line = text.lines().find(|line| line.starts_with("gridcast_build_info{"));
    let line = line.unwrap_or_else(|| panic!("no build information in {text}"));
    line.split("driver=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("it").to_owned()
}

#[test]
fn where_io_uring_is_forbidden_a_node_serves_with_epoll_and_warns_once() {
    for code in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
        let change = |command: &mut Command| restrict(command, Answer::Error(code), "auto");
        let (mut server, before) = Server::start_changed(CONFIG, change);
        assert_eq!(driver_of(&server), "epoll");
        expect_service(&server);
        server.terminate();
        let (status, after) = server.finish();
        assert_eq!(status, Some(0));
        let lines = before.iter().chain(&after);
        let warnings: Vec<_> = lines.filter(|line| line.contains("io_uring")).collect();
        let [warning] = &warnings[..] else { panic!("not one warning: {warnings:#?}") };
        for part in ["see `", "node.driver is \"epoll\""] {
            assert!(warning.contains(part), "{warning}");
        }
    }
}

/// The limit of locked memory is enough for a node, so that the check at the start finds nothing wrong. But it
/// counts for all processes of a user together, and another node has taken most of it: the first core gets its
/// ring, and the second does not.
#[test]
fn a_node_whose_second_core_gets_no_ring_serves_with_epoll_and_warns_once() {
    if !is_allowed() || !rustix::process::geteuid().is_root() {
        return println!("not run: it takes root, and a machine that allows io_uring");
    }
    let config =
        |cores| format!("{}\n[log]\nlevel = \"debug\"\n", CONFIG.replace("cores = 2", cores));
    // Enough for three cores, and for the rings of the checks, which the kernel releases late.
    let limit = gridcast::runtime::check::locked_bytes(3) + (256 << 10);
    let (mut first, _) = Server::start_changed(&config("cores = 2"), |command| {
        as_user(command, limit, "io_uring");
    });
    let (mut second, before) =
        Server::start_changed(&config("cores = 2"), |command| as_user(command, limit, "auto"));
    assert_eq!((&driver_of(&first)[..], &driver_of(&second)[..]), ("io_uring", "epoll"));
    for server in [&first, &second] {
        expect_service(server);
    }
    let is_warning = |line: &&String| line.contains(" WARN ") && line.contains("io_uring");
    let warnings: Vec<_> = before.iter().filter(is_warning).collect();
    let [warning] = &warnings[..] else { panic!("not one warning: {before:#?}") };
    for part in ["see `ulimit -l`", "node.driver is \"epoll\""] {
        assert!(warning.contains(part), "{warning}");
    }
    for server in [&mut second, &mut first] {
        server.terminate();
        assert_eq!(server.exit_code(), Some(0));
    }
}

#[test]
fn a_node_that_is_to_use_io_uring_and_may_not_names_the_remedy_and_ends() {
    for code in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
        let file = config_file(CONFIG);
        let mut command = command(&["serve", "--config", file.to_str().expect("UTF-8")]);
        restrict(&mut command, Answer::Error(code), "io_uring");
        let (status, lines) = Process::spawn(&mut command).finish();
        std::fs::remove_file(file).expect("the file was there to be read");
        assert_eq!(status, Some(1));
        let last = lines.last().expect("a line");
        for part in ["io_uring: ", "see `", "seccomp profile", "set node.driver to \"epoll\""] {
            assert!(last.contains(part), "{last}");
        }
    }
}

/// A call of io_uring, by whatever thread or library, would kill the node.
#[test]
fn a_node_with_epoll_makes_no_call_of_io_uring() {
    let mesh = "[mesh]\nbind = \"127.0.0.1:0\"\nkey = \"0123456789abcdef\"\n";
    let config = format!("{}{mesh}", CONFIG.replace("[node]", "[node]\nid = 1"));
    let change = |command: &mut Command| restrict(command, Answer::Kill, "epoll");
    let (mut server, before) = Server::start_changed(&config, change);
    assert_eq!(driver_of(&server), "epoll");
    expect_service(&server);
    server.terminate();
    let (status, after) = server.finish();
    assert_eq!(status, Some(0), "{after:#?}");
    let is_about_io_uring = |line: &&String| line.contains("io_uring");
    assert_eq!(before.iter().chain(&after).find(is_about_io_uring), None);
}

/// Without this the test above would show nothing.
#[test]
fn a_node_with_io_uring_makes_a_call_of_io_uring() {
    if !is_allowed() {
        return println!("not run: this machine does not allow io_uring");
    }
    let file = config_file(CONFIG);
    let mut command = command(&["serve", "--config", file.to_str().expect("UTF-8")]);
    restrict(&mut command, Answer::Kill, "io_uring");
    let (status, _) = Process::spawn(&mut command).finish();
    std::fs::remove_file(file).expect("the file was there to be read");
    assert_eq!(status, None, "it was killed");
}

#[test]
fn where_io_uring_is_allowed_it_is_used_without_a_word() {
    if !is_allowed() {
        return println!("not run: this machine does not allow io_uring");
    }
    let change = |command: &mut Command| {
        command.env(DRIVER, "auto");
    };
    let (mut server, before) = Server::start_changed(CONFIG, change);
    assert_eq!(driver_of(&server), "io_uring");
    expect_service(&server);
    server.terminate();
    let (status, after) = server.finish();
    assert_eq!(status, Some(0));
    let is_about_drivers = |line: &&String| line.contains("io_uring") || line.contains("epoll");
    assert_eq!(before.iter().chain(&after).find(is_about_drivers), None);
}
