//! The client programs: C programs in all but language, which look every function up by themselves.
// They call the driver as C programs do, whose only promise is that they follow its reference.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::null_mut;

use crate::node::ROLE;

const MIB: usize = 1 << 20;

fn say(text: &str) {
    println!("@{text}");
}

/// Waits until the test says something, or closes our input.
fn hear() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Plays the role that the environment names. Alone it does nothing.
#[test]
#[ignore = "a client program for the other tests"]
fn client() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.as_str() {
        "curious" => curious(),
        "lookups" => lookups(),
        "forms" => forms(),
        "versions" => versions(),
        "launch 2" => launch(2),
        "physical" => physical(),
        "contexts" => contexts(),
        "unknown" => unknown(),
        "take-all" => take_all(),
        "free-too-much" => free_too_much(),
        "leave" => leave(),
        "exec" => exec(),
        "vfork" => vfork(),
        "child" => return say(&format!("child launched {}", launched(1))),
        _ => panic!("no such role: {role}"),
    }
    hear();
}

fn library(flags: c_int) -> *mut c_void {
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | flags) };
    assert!(!library.is_null());
    library
}

fn symbol(name: &str) -> *mut c_void {
    let text = CString::new(name).unwrap();
    let address = unsafe { libc::dlsym(library(0), text.as_ptr()) };
    assert!(!address.is_null(), "{name}");
    address
}

/// A function of the driver that is behind the hook.
fn of_driver(name: &CStr) -> *mut c_void {
    let path = CString::new(std::env::var("GPUFN_DRIVER").unwrap()).unwrap();
    let driver = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    unsafe { libc::dlsym(driver, name.as_ptr()) }
}

macro_rules! call {
    ($name:literal ($($argument:expr => $kind:ty),*)) => {{
        let function = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> i32>(symbol($name)) };
        unsafe { function($($argument),*) }
    }};
}

fn file_of(address: *mut c_void) -> String {
    let mut info = unsafe { std::mem::zeroed::<libc::Dl_info>() };
    assert_ne!(unsafe { libc::dladdr(address, &raw mut info) }, 0);
    unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned()
}

fn init() -> i32 {
    call!("cuInit"(0 => u32))
}

fn context() -> (*mut c_void, i32) {
    let mut context = null_mut();
    let status = call!("cuCtxCreate_v2"(&raw mut context => *mut *mut c_void, 0 => u32, 0 => i32));
    (context, status)
}

fn launched(times: i32) -> i32 {
    assert_eq!((init(), context().1), (0, 0));
    let null = null_mut::<c_void>();
    for _ in 0..times {
        let status = call!("cuLaunchKernel"(
            0x007f_0010 as *mut c_void => *mut c_void, 1 => u32, 1 => u32, 1 => u32, 1 => u32, 1 => u32, 1 => u32, 0 => u32,
            null => *mut c_void, null => *mut c_void, null => *mut c_void
        ));
        assert_eq!(status, 0);
    }
    let count = of_driver(c"fakeLaunches");
    let count = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> i32>(count) };
    unsafe { count() }
}

/// The driver's own look-ups find the hook, which is in the global scope.
fn curious() {
    library(libc::RTLD_GLOBAL);
    say(&format!("init {}", init()));
    let deepest = of_driver(c"fakeDeepest");
    let deepest = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> i32>(deepest) };
    say(&format!("deepest {}", unsafe { deepest() }));
}

fn lookups() {
    let library = library(libc::RTLD_GLOBAL);
    for name in ["dlsym", "dlopen"] {
        let text = CString::new(name).unwrap();
        let found = file_of(unsafe { libc::dlsym(libc::RTLD_DEFAULT, text.as_ptr()) });
        let file = if found.contains("/libc.so") || found.contains("/libdl.so") { "libc" } else { &found };
        say(&format!("{name} {file}"));
    }
    let found = [library, libc::RTLD_DEFAULT]
        .map(|scope| unsafe { libc::dlsym(scope, c"cudnnCreate".as_ptr()) }.is_null());
    say(&format!("cudnnCreate {}", if found == [true, true] { "none" } else { "found" }));
}

type AskOne = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64) -> i32;
type AskTwo = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int) -> i32;

fn ask(name: &CStr, version: c_int) -> *mut c_void {
    let ask = unsafe { std::mem::transmute::<*mut c_void, AskTwo>(symbol("cuGetProcAddress_v2")) };
    let mut address = null_mut();
    assert_eq!(unsafe { ask(name.as_ptr(), &raw mut address, version, 0, null_mut()) }, 0, "{name:?}");
    address
}

/// A form with four arguments must leave a fifth alone, whatever it is.
fn forms() {
    let asked = c"cuGetProcAddress";
    let one = unsafe { std::mem::transmute::<*mut c_void, AskOne>(symbol("cuGetProcAddress")) };
    let (mut first, mut found) = (null_mut(), null_mut());
    assert_eq!(unsafe { one(asked.as_ptr(), &raw mut first, 11030, 0) }, 0);
    let again = unsafe { std::mem::transmute::<*mut c_void, AskTwo>(first) };
    let mut untouched = 77;
    assert_eq!(unsafe { again(c"cuMemAlloc".as_ptr(), &raw mut found, 11030, 0, &raw mut untouched) }, 0);
    assert!(untouched == 77 && !file_of(found).ends_with("driver.so"));
    say("first form of 11030");
    for version in [12000, 13050] {
        let mut second = null_mut();
        assert_eq!(unsafe { one(asked.as_ptr(), &raw mut second, version, 0) }, 0);
        let second = unsafe { std::mem::transmute::<*mut c_void, AskTwo>(second) };
        let mut result = 77;
        assert_eq!(unsafe { second(c"cuMemAlloc".as_ptr(), &raw mut found, version, 0, &raw mut result) }, 0);
        assert!(!file_of(found).ends_with("driver.so"));
        say(&format!("second form of {version}"));
        if version == 13050 {
            say(&format!("found {result}"));
        }
    }
}

fn versions() {
    assert_eq!((init(), context().1), (0, 0));
    let before = unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> i32>(ask(c"cuCtxSynchronize", 12090))
    };
    say(&format!("cuCtxSynchronize of 12090: {}", unsafe { before() }));
    let since = unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> i32>(ask(
            c"cuCtxSynchronize",
            13000,
        ))
    };
    say(&format!("cuCtxSynchronize of 13000: {}", unsafe { since(null_mut()) }));
    for version in [12090, 13000] {
        let found = file_of(ask(c"cuCtxGetDevice", version));
        say(&format!(
            "cuCtxGetDevice of {version}: {}",
            if found.ends_with("driver.so") { "driver" } else { "hook" }
        ));
    }
    let create = ask(c"cuCtxCreate", 12000);
    let same = create != of_driver(c"cuCtxCreate_v2") && !file_of(create).ends_with("driver.so");
    say(&format!("cuCtxCreate of 12000 is {}", if same { "cuCtxCreate_v2" } else { "another" }));
}

fn launch(times: i32) {
    say("ready");
    say(&format!("launched {}", launched(times)));
}

fn physical() {
    assert_eq!(init(), 0);
    let mut handles = [0u64; 4];
    let mut create = |what: &str, at: usize, mib: usize, location: [i32; 2]| {
        let properties = [1, 0, location[0], location[1]];
        let status = call!("cuMemCreate"(
            &raw mut handles[at] => *mut u64, mib * MIB => usize, properties.as_ptr() => *const i32, 0 => u64
        ));
        say(&format!("{what} {status}"));
    };
    create("device", 0, 512, [1, 0]);
    create("beyond the limit", 1, 513, [1, 0]);
    create("another device", 1, 16, [1, 7]);
    create("host", 2, 4096, [2, 0]);
    hear();
    call!("cuMemRelease"(handles[0] => u64));
    call!("cuMemRelease"(handles[2] => u64));
    say("released");
}

fn free_memory() -> (usize, usize) {
    let (mut free, mut total) = (0, 0);
    assert_eq!(call!("cuMemGetInfo_v2"(&raw mut free => *mut usize, &raw mut total => *mut usize)), 0);
    (free, total)
}

fn take(mib: usize) -> Result<u64, i32> {
    let mut pointer = 0;
    match call!("cuMemAlloc_v2"(&raw mut pointer => *mut u64, mib * MIB => usize)) {
        0 => Ok(pointer),
        error => Err(error),
    }
}

fn contexts() {
    assert_eq!(init(), 0);
    let (context, status) = context();
    say(&format!("created {status}"));
    if status != 0 {
        return;
    }
    say(&format!("free {}", free_memory().0));
    say(&format!("taken {}", take(100).err().unwrap_or(0)));
    say(&format!("free {}", free_memory().0));
    if std::env::var("GPUFN_NVML").as_deref() == Ok("/none") {
        return;
    }
    // The hundred MiB are never freed: they end with the context.
    say(&format!("destroyed {}", call!("cuCtxDestroy_v2"(context => *mut c_void))));
}

fn unknown() {
    assert_eq!(init(), 0);
    for name in
        [c"cuLaunchKernel", c"cuMemAlloc", c"cuCtxGetDevice", c"cuDriverGetVersion", c"cuStreamCreate"]
    {
        ask(name, 12090);
    }
    let table = |first: u32| {
        let mut name = [0u8; 16];
        name[..4].copy_from_slice(&first.to_be_bytes());
        let mut table = null_mut();
        assert_eq!(
            call!("cuGetExportTable"(&raw mut table => *mut *mut c_void, name.as_ptr() => *const u8)),
            0
        );
    };
    table(0x6bd5_fb6c);
    say("asked for known names");
    hear();
    ask(c"cuLaunchKernelFar", 13050);
    say("asked for an unknown name");
    hear();
    table(0x1234_5678);
    say("asked for tables");
}

fn take_all() {
    assert_eq!((init(), context().1), (0, 0));
    let mut taken = 0;
    let error = loop {
        match take(16) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, 2);
    say(&format!("took {taken}"));
    hear();
    say(&format!("free {}", free_memory().0));
}

fn free_too_much() {
    assert_eq!((init(), context().1), (0, 0));
    let kept = take(100).unwrap();
    let freed = take(50).unwrap();
    let free = |pointer: u64| call!("cuMemFree_v2"(pointer => u64));
    for _ in 0..100 {
        free(freed);
        free(kept + 8);
        free(0xdead_0000);
    }
    let (free, total) = free_memory();
    say(&format!("free {free} of {total}"));
}

fn leave() {
    launched(1);
    say("launched");
    // As a program that returns from its main function.
    unsafe { libc::exit(0) };
}

fn parent_launches() {
    say(&format!("parent launched {}", launched(1)));
}

/// Starts the program anew, as a child that shares this one's memory until then: `vfork`, and an exec.
fn vfork() {
    parent_launches();
    let text = |text: String| CString::new(text).unwrap();
    let arguments = std::env::args().map(text).collect::<Vec<_>>();
    let variables =
        std::env::vars().filter(|(name, _)| name != ROLE).map(|(name, value)| format!("{name}={value}"));
    let variables = variables.chain([format!("{ROLE}=child")]).map(text).collect::<Vec<_>>();
    let list = |texts: &[CString]| {
        texts.iter().map(|text| text.as_ptr().cast_mut()).chain([null_mut()]).collect::<Vec<_>>()
    };
    let program = text(std::env::current_exe().unwrap().to_str().unwrap().to_owned());
    let (mut child, mut ended) = (0, 0);
    let (none, null) = (std::ptr::null(), std::ptr::null());
    let (arguments, variables) = (list(&arguments), list(&variables));
    unsafe {
        let pointers = (arguments.as_ptr(), variables.as_ptr());
        assert_eq!(
            libc::posix_spawn(&raw mut child, program.as_ptr(), none, null, pointers.0, pointers.1),
            0
        );
        libc::waitpid(child, &raw mut ended, 0);
    }
    assert_eq!(ended, 0);
}

fn exec() {
    parent_launches();
    let error = Command::new(std::env::current_exe().unwrap())
        .args(std::env::args().skip(1))
        .env(ROLE, "child")
        .exec();
    panic!("{error}");
}
