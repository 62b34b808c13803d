//! Contents of packages: the unit, the image and the Kubernetes manifests agree with the program, and
//! the release binary is small. `tests/packages/run` builds and installs for real.

#![forbid(unsafe_code)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use gridcast::config::Config;
use rustix::process::{Resource, getrlimit};
use support::{Process, command, config_file};

/// The largest release binary, in bytes.
const BINARY_BYTES_MAX: u64 = 16_000_000;

/// The program.
const GRIDCAST: &str = env!("CARGO_BIN_EXE_gridcast");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The text that follows `start` on its line.
#[track_caller]
fn value<'a>(text: &'a str, start: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(start));
    line.unwrap_or_else(|| panic!("no {start}")).split(" #").next().unwrap_or_default().trim()
}

fn defaults() -> Config {
    Config::parse("", "gridcast.toml", std::iter::empty(), &[0, 1]).expect("all keys have defaults")
}

#[test]
fn the_unit_leaves_time_for_the_shutdown_and_runs_commands_that_exist() {
    let unit = read("tuning/gridcast.service");
    let node = defaults().node;
    let seconds: u64 = value(&unit, "TimeoutStopSec=").parse().expect("whole seconds");
    assert!(seconds > node.lame_duck_s + node.drain_s, "{seconds}");
    for line in unit.lines().filter(|line| line.starts_with("Exec")) {
        let (_, program) = line.split_once('=').expect("it begins so");
        let Some(arguments) = program.trim_start_matches('-').strip_prefix("gridcast ") else {
            continue;
        };
        let arguments: Vec<&str> = arguments.split(' ').collect();
        assert_eq!(arguments[1..], ["--config", "/etc/gridcast/gridcast.toml"], "{line}");
        let help = command(&[arguments[0], "--help"]).output().expect("gridcast runs");
        assert!(help.status.success(), "{line}");
    }
}

#[test]
fn the_unit_and_the_package_name_the_same_user() {
    let user = value(&read("tuning/gridcast.service"), "User=").to_owned();
    let accounts = read("packaging/debian/gridcast.conf");
    assert!(accounts.lines().any(|line| line.starts_with(&format!("u {user} "))), "{accounts}");
    assert!(read("packaging/debian/postinst").contains(&format!("chown root:{user} ")));
}

/// The highest exposure level of the unit, in tenths of what `systemd-analyze security` shows (0 to 10). A service without any
/// sandboxing has 96.
const EXPOSURE_MAX: &str = "20";

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_little_exposed() {
    let unit = read("tuning/gridcast.service");
    let folder = folder("systemd");
    let file = folder.join("gridcast.service");
    // systemd looks for the program, which is installed elsewhere here.
    let here = ["serve", "doctor", "check"].into_iter().fold(unit, |unit, command| {
        unit.replace(&format!("gridcast {command}"), &format!("{GRIDCAST} {command}"))
    });
    fs::write(&file, here).expect("it is writable");
    let exposure = format!("--threshold={EXPOSURE_MAX}");
    for arguments in [&["verify", "--man=no"][..], &["security", "--offline=true", &exposure]] {
        let Ok(check) = Command::new("systemd-analyze").args(arguments).arg(&file).output() else {
            return eprintln!("skipped: systemd-analyze is not installed");
        };
        let said = String::from_utf8_lossy(&check.stderr);
        // Before version 250 it cannot look at a file alone.
        if said.contains("unrecognized option") {
            return eprintln!("skipped: systemd-analyze: {said}");
        }
        let table = String::from_utf8_lossy(&check.stdout);
        assert!(check.status.success() && !said.contains("gridcast.service:"), "{said}{table}");
    }
    fs::remove_dir_all(folder).expect("the folder was made");
}

#[test]
fn a_node_starts_with_the_limits_of_the_unit_and_without_any_rights() {
    if !rustix::process::geteuid().is_root() || Command::new("setpriv").arg("-V").output().is_err()
    {
        return eprintln!("skipped: giving up rights takes root and setpriv");
    }
    let unit = read("tuning/gridcast.service");
    let descriptors = value(&unit, "LimitNOFILE=").parse().expect("a number");
    let locked = value(&unit, "LimitMEMLOCK=").strip_suffix('M').expect("MiB");
    let locked = locked.parse::<u64>().expect("a number") << 20;
    let config = "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n[[edge.route]]\npath = \"/\"\n";
    let file = config_file(config);
    let path = file.to_str().expect("UTF-8");
    let plain = command(&["serve", "--config", path]);
    let mut limited = Command::new("prlimit");
    limited
        .arg(format!("--nofile={}", at_most_the_own(Resource::Nofile, descriptors)))
        .arg(format!("--memlock={}", at_most_the_own(Resource::Memlock, locked)))
        .args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])
        .args([GRIDCAST, "serve", "--config", path])
        .env_clear()
        .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let warnings = [plain, limited].map(|mut command| {
        let (_, lines) = Process::spawn(&mut command).lines_until_ready();
        lines.into_iter().filter(|line| line.contains("WARN") && line.contains("io_uring")).count()
    });
    assert_eq!(warnings[0], warnings[1], "io_uring works with these limits if it works at all");
    fs::remove_file(file).expect("it was written");
}

/// `wanted`, or this process's hard limit if that is lower: a container may not raise it.
fn at_most_the_own(resource: Resource, wanted: u64) -> u64 {
    getrlimit(resource).maximum.map_or(wanted, |own| own.min(wanted))
}

/// A folder of this process for one test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", process::id()));
    fs::create_dir_all(&folder).expect("the folder can be made");
    folder
}

#[test]
fn the_configuration_of_the_image_is_valid() {
    let file = root().join("packaging/container.toml");
    let check = command(&["check", "--config", file.to_str().expect("UTF-8")]).output();
    let check = check.expect("gridcast runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

#[test]
fn the_image_copies_files_that_exist_and_exposes_the_default_ports() {
    let dockerfile = read("Dockerfile");
    for line in dockerfile.lines().filter(|line| line.starts_with("COPY packaging/")) {
        let file = line.split(' ').nth(1).expect("it begins so");
        assert!(root().join(file).is_file(), "{file}");
    }
    assert!(root().join("packaging/build").is_file());
    let config = defaults();
    let exposed = value(&dockerfile, "EXPOSE ");
    assert!(exposed.contains(&format!("{}/tcp", config.api.bind.port())), "{exposed}");
    for port in ["6790/tcp", "6788/udp"] {
        assert!(exposed.contains(port), "{exposed}");
    }
    let version = value(&read("rust-toolchain.toml"), "channel = ").replace('"', "");
    let minor = version.rsplit_once('.').expect("a patch version").0.to_owned();
    assert!(dockerfile.contains(&format!("rust:{minor}-")), "{minor}");
}

/// The configuration in the ConfigMap, without its indentation.
fn kubernetes_configuration(manifests: &str) -> String {
    let (_, rest) = manifests.split_once("  gridcast.toml: |\n").expect("the key is there");
    let (text, _) = rest.split_once("\n---\n").expect("another document follows");
    text.lines().map(|line| line.strip_prefix("    ").unwrap_or(line).to_owned() + "\n").collect()
}

#[test]
fn the_kubernetes_configuration_is_valid_with_the_variables_of_the_pod() {
    let manifests = read("examples/kubernetes/gridcast.yaml");
    // A ConfigMap is mounted as a link to a file.
    let folder = folder("kubernetes");
    fs::write(folder.join("data"), kubernetes_configuration(&manifests)).expect("it is writable");
    let file = folder.join("gridcast.toml");
    symlink("data", &file).expect("it is writable");
    // Those of the StatefulSet, by name.
    let variables: Vec<(&str, &str)> = manifests
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- name: GRIDCAST_"))
        .map(|name| match name {
            "NODE_ID" => ("GRIDCAST_NODE_ID", "0"),
            "API_ADVERTISE" => ("GRIDCAST_API_ADVERTISE", "10.0.0.5:6789"),
            "MESH_ADVERTISE" => ("GRIDCAST_MESH_ADVERTISE", "10.0.0.5:6788"),
            "MESH_KEY" => ("GRIDCAST_MESH_KEY", value(&manifests, "mesh-key: ")),
            _ => panic!("{name} has no value here"),
        })
        .collect();
    assert_eq!(variables.len(), 4);
    let check = command(&["check", "--config", file.to_str().expect("UTF-8")])
        .env("GRIDCAST_NODE_CORES", "1")
        .envs(variables)
        .output()
        .expect("gridcast runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    fs::remove_dir_all(folder).expect("the folder was made");
}

#[test]
fn kubernetes_leaves_time_for_the_shutdown() {
    let manifests = read("examples/kubernetes/gridcast.yaml");
    let number = |start: &str| value(&manifests, start).parse::<u64>().expect("a whole number");
    let grace = number("terminationGracePeriodSeconds: ");
    let (lame_duck, drain) = (number("lame_duck_s = "), number("drain_s = "));
    assert!(grace > lame_duck + drain, "{grace}");
    // A balancer that asks as often as the kubelet has noticed by then.
    let noticed = number("periodSeconds: ") * number("failureThreshold: ");
    assert!(lame_duck > noticed, "{noticed}");
    assert_eq!(
        value(&manifests, "cores = "),
        value(&manifests, "requests: { cpu: \"").split('"').next().unwrap_or_default()
    );
}

#[test]
fn the_kubernetes_ports_and_services_agree() {
    let manifests = read("examples/kubernetes/gridcast.yaml");
    let text = kubernetes_configuration(&manifests);
    for (name, bind) in [("api", "6789"), ("edge", "6790"), ("mesh", "6788")] {
        assert!(text.contains(&format!("bind = \"0.0.0.0:{bind}\"")), "{name}");
        assert!(manifests.contains(&format!("{{ name: {name}, containerPort: {bind}")), "{name}");
        assert!(manifests.contains(&format!("{{ name: {name}, port: {bind}")), "{name}");
    }
    let service = value(&manifests, "serviceName: ");
    assert!(text.contains(&format!("seeds = [\"{service}:6788\"]")), "{service}");
}

/// A binary without symbols, from an earlier `cargo build --release` or `packaging/build`.
fn release_binaries() -> Vec<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in target");
    let files = ["release/gridcast", "packages/gridcast"].map(|file| target.join(file));
    files.into_iter().filter(|file| file.is_file()).collect()
}

#[test]
fn a_release_binary_is_small_and_its_panics_name_their_places() {
    let binaries = release_binaries();
    if binaries.is_empty() {
        return eprintln!("skipped: no cargo build --release, and no packaging/build");
    }
    for file in binaries {
        let bytes = fs::read(&file).expect("it can be read");
        let size = bytes.len() as u64;
        assert!(size < BINARY_BYTES_MAX, "{}: {size} bytes", file.display());
        let place = b"src/shard/";
        assert!(bytes.windows(place.len()).any(|window| window == place), "{}", file.display());
    }
}

#[test]
fn the_scripts_of_packages_have_no_wrong_syntax() {
    let scripts = [
        "packaging/build",
        "packaging/deb",
        "packaging/pages",
        "packaging/debian/postinst",
        "packaging/debian/postrm",
        "tests/packages/run",
    ];
    for script in scripts {
        let check = Command::new("bash").arg("-n").arg(root().join(script)).output().expect("bash");
        assert!(check.status.success(), "{script}: {}", String::from_utf8_lossy(&check.stderr));
    }
}
