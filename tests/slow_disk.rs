//! A disk that does not answer delays nobody but those who wait for it. The disk of the test is slow by a library that is
//! loaded before that of C: its `fdatasync` waits while a file is there. Skipped with a word where there is no C compiler.

#![forbid(unsafe_code)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, id};

use serde_json::json;
use support::{Server, until};

/// Waits while the file `HOLD_WHILE_THERE` is there, and says so with another file.
const HOLD: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int file) {
    const char *hold = getenv("HOLD_WHILE_THERE");
    char held[4096];
    if (hold && access(hold, F_OK) == 0) {
        snprintf(held, sizeof held, "%s.held", hold);
        close(open(held, O_CREAT | O_WRONLY, 0600));
        while (access(hold, F_OK) == 0)
            usleep(1000);
        unlink(held);
    }
    return syscall(SYS_fdatasync, file);
}
"#;

/// A folder, which is removed when the value is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("gridcast-slow-disk-{}", id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(path.join("data")).expect("the test's folder can be written");
        Self(path)
    }

    /// Builds the library. `None`, with a word on standard error: there is no compiler.
    fn library(&self) -> Option<PathBuf> {
        let (source, library) = (self.0.join("hold.c"), self.0.join("hold.so"));
        fs::write(&source, HOLD).expect("the folder is there");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
        let Ok(built) = compiler.status() else {
            eprintln!("skipped: cc is not installed");
            return None;
        };
        assert!(built.success());
        Some(library)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_sync_that_does_not_end_delays_nobody_but_the_events_that_wait_for_it() {
    let folder = Folder::new();
    let Some(library) = folder.library() else { return };
    let (hold, held) = (folder.0.join("hold"), folder.0.join("hold.held"));
    let config = format!(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[data]\ndir = {:?}\n\
         [[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/in\"\ntopic = \"orders\"\nsubscribe = [\"*\"]\n\
         [[edge.route]]\npath = \"/chat\"\ntopic = \"chat\"\nsubscribe = [\"*\"]\n\
         [[topic]]\nname = \"orders\"\nstore = \"disk\"\n",
        folder.0.join("data")
    );
    let slow = |command: &mut Command| {
        command.env("LD_PRELOAD", &library).env("HOLD_WHILE_THERE", &hold);
    };
    let (server, _) = Server::start_changed(&config, slow);
    let (mut orders, mut chat) = (server.consumer("orders"), server.consumer("chat"));
    // Devices of both cores.
    let mut devices: Vec<_> = (0..8).map(|_| server.device("/chat?channels=news")).collect();
    let mut sender = server.device("/in?channels=news");
    sender.send_text("stored at once");
    assert_eq!(orders.event()["d"]["frame"]["data"], "stored at once");
    fs::write(&hold, "").expect("the folder is there");
    sender.send_text("stored later");
    until(|| held.exists());
    let mut backend = server.backend();
    for number in 0..100 {
        let text = number.to_string();
        backend.done("mesh.publish", &json!({"c": "news", "d": text}));
        for device in &mut devices {
            assert_eq!(device.text(), text);
        }
        devices[number % 8].send_text(&text);
        assert_eq!(chat.event()["d"]["frame"]["data"], text);
    }
    assert_eq!(sender.text(), "0", "its pushes wait, and it is written to");
    assert_eq!(server.get("/readyz").status, 200);
    drop(server.device("/chat"));
    assert!(held.exists(), "the sync has not ended");
    fs::remove_file(&hold).expect("it was written");
    assert_eq!(orders.event()["d"]["frame"]["data"], "stored later");
}
