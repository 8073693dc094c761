//! Lets the library load into images whose C library is older than the machine it was built on (glibc 2.28), and makes the
//! C library its only need.
//!
//! A linker takes the newest version of each function. So it is told to take functions of this library (`--wrap`), which go
//! on to an older version of the same. Functions that were new themselves are made here of older ones.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::{env, fs, io};

/// Functions that are made of others: name, what x86-64 does, what aarch64 does. Before glibc 2.33 the `stat` functions
/// had the version of their structure as the first argument: 1 on x86-64, 0 on aarch64.
const MADE: [(&str, &str, &str); 6] = [
    ("gettid", "mov eax, 186; syscall; ret", "mov x8, 178; svc 0; ret"),
    (
        "stat64",
        "mov rdx, rsi; mov rsi, rdi; mov edi, 1; jmp __xstat64@PLT",
        "mov x2, x1; mov x1, x0; mov w0, 0; b __xstat64",
    ),
    (
        "lstat64",
        "mov rdx, rsi; mov rsi, rdi; mov edi, 1; jmp __lxstat64@PLT",
        "mov x2, x1; mov x1, x0; mov w0, 0; b __lxstat64",
    ),
    (
        "fstat64",
        "mov rdx, rsi; mov esi, edi; mov edi, 1; jmp __fxstat64@PLT",
        "mov x2, x1; mov w1, w0; mov w0, 0; b __fxstat64",
    ),
    (
        "fstatat64",
        "mov r8d, ecx; mov rcx, rdx; mov rdx, rsi; mov esi, edi; mov edi, 1; jmp __fxstatat64@PLT",
        "mov w4, w3; mov x3, x2; mov x2, x1; mov w1, w0; mov w0, 0; b __fxstatat64",
    ),
    ("_dl_find_object", "jmp {find_object}", "b {find_object}"),
];

/// Writes the functions to `glibc.rs` in `out`, and tells the linker of them.
pub(crate) fn use_older_versions(facts: &Path, out: &Path) -> io::Result<()> {
    let arm = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|target| target == "aarch64");
    let mut text = String::from("global_asm!(\n");
    let mut define = |name: &str, body: &str| {
        // A section of its own, so that what is not used is not linked. Writing to a String does not fail.
        let _ = writeln!(text, r#"    ".pushsection .text.gpufn.{name}, \"ax\", %progbits","#);
        let _ = writeln!(text, r#"    ".globl __wrap_{name}", ".hidden __wrap_{name}", "__wrap_{name}:","#);
        for line in body.split("; ") {
            let _ = writeln!(text, r#"    "{line}","#);
        }
        let _ = writeln!(text, r#"    ".popsection","#);
        println!("cargo:rustc-cdylib-link-arg=-Wl,--wrap={name}");
    };
    for line in super::lines(&fs::read_to_string(facts)?) {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        let [name, x86, aarch64] = fields[..] else {
            return Err(io::Error::other(format!("{}: {line}", facts.display())));
        };
        let version = if arm { aarch64 } else { x86 };
        let alias = format!(".symver gpufn_{name}, {name}@{version}");
        let jump = if arm { format!("b gpufn_{name}") } else { format!("jmp gpufn_{name}@PLT") };
        define(name, &format!("{alias}; {jump}"));
    }
    for (name, x86, aarch64) in MADE {
        define(name, if arm { aarch64 } else { x86 });
    }
    text.push_str("    find_object = sym find_object,\n);\n");
    fs::write(out.join("glibc.rs"), text)
}

/// Has the compiler's support library linked into this one, where it is there for that.
pub(crate) fn need_no_libgcc(out: &Path) -> io::Result<()> {
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let answer = Command::new(compiler).arg("-print-file-name=libgcc_eh.a").output();
    // A compiler that has no such file answers with the bare name.
    let is_there = answer.is_ok_and(|answer| answer.stdout.contains(&b'/'));
    if is_there && env::var("TARGET").ok() == env::var("HOST").ok() {
        let folder = out.join("link");
        fs::create_dir_all(&folder)?;
        // Rust's library asks for `-lgcc_s`, and this folder is searched first.
        fs::write(folder.join("libgcc_s.so"), "INPUT(-lgcc_eh -lgcc)\n")?;
        println!("cargo:rustc-cdylib-link-arg=-L{}", folder.display());
        println!("cargo:rustc-cdylib-link-arg=-static-libgcc");
    }
    Ok(())
}
