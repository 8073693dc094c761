//! The client that asks for every name.
// It calls the driver as C programs do, whose only promise is that they follow its reference.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Read;
use std::ptr::null_mut;

use crate::node::ROLE;
use crate::rules::{fits, rules};

const FACTS: &str = include_str!("../../facts/cuda.txt");

/// One line of the facts.
struct Offer {
    asked: &'static str,
    version: c_int,
    symbol: &'static str,
}

fn offers() -> Vec<Offer> {
    let lines = FACTS.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let (asked, version) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
            Offer { asked, version, symbol: words.nth(1).unwrap() }
        })
        .collect()
}

/// Plays the role that the environment names. Alone it does nothing.
#[test]
#[ignore = "a client program for the other tests"]
fn client() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let wrong = Ways::open(role.ends_with(" bound")).check();
    for line in wrong.iter().take(20) {
        eprintln!("{line}");
    }
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

type AskOne = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64) -> c_int;
type AskTwo = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int) -> c_int;

/// The ways to an address, through the hook and to the driver behind it.
struct Ways {
    hook: *mut c_void,
    driver: *mut c_void,
    watched: HashMap<&'static str, bool>,
    wrong: Vec<String>,
    asked: u32,
    exchanged: u32,
}

fn symbol(library: *mut c_void, name: &str) -> *mut c_void {
    let name = CString::new(name).unwrap();
    unsafe { libc::dlsym(library, name.as_ptr()) }
}

/// File and name of what lies at an address.
fn place(address: *mut c_void) -> (String, String) {
    let mut info = unsafe { std::mem::zeroed::<libc::Dl_info>() };
    assert_ne!(unsafe { libc::dladdr(address, &raw mut info) }, 0);
    let text = |name: *const c_char| {
        if name.is_null() {
            return String::new();
        }
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    };
    (text(info.dli_fname), text(info.dli_sname))
}

impl Ways {
    fn open(bound: bool) -> Self {
        let hook = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        let path = CString::new(std::env::var("GPUFN_DRIVER").unwrap()).unwrap();
        let driver = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!hook.is_null() && !driver.is_null() && hook != driver);
        let rules = rules();
        let is_watched = |name: &str| {
            let rule = rules.iter().find(|rule| fits(rule.pattern, name));
            bound && rule.is_some_and(|rule| rule.treatment != "passed")
        };
        let watched = offers().iter().map(|offer| (offer.symbol, is_watched(offer.symbol))).collect();
        Self { hook, driver, watched, wrong: Vec::new(), asked: 0, exchanged: 0 }
    }

    fn check(mut self) -> Vec<String> {
        let offers = offers();
        self.check_symbols(&offers);
        let versions =
            offers.iter().map(|offer| offer.version).chain([12090, 13050, 99990]).collect::<BTreeSet<_>>();
        for name in offers.iter().map(|offer| offer.asked).collect::<BTreeSet<_>>() {
            for version in versions.iter().filter(|version| **version > 0) {
                for flags in 0..=2 {
                    self.check_asked(name, *version, flags);
                }
            }
        }
        println!("@wrong {}", self.wrong.len());
        println!("@asked {}", self.asked);
        println!("@exchanged {}", self.exchanged);
        self.wrong
    }

    /// By symbol: every export is the hook's, whose jump decides; with and without a version the same.
    fn check_symbols(&mut self, offers: &[Offer]) {
        for offer in offers {
            let found = symbol(self.hook, offer.symbol);
            let name = CString::new(offer.symbol).unwrap();
            let with_version = unsafe { libc::dlvsym(self.hook, name.as_ptr(), c"libcuda.so.1".as_ptr()) };
            self.asked += 2;
            if found.is_null() || place(found).0.ends_with("libsimcuda.so") {
                self.wrong.push(format!("dlsym {}: not the hook's", offer.symbol));
            }
            if !with_version.is_null() && with_version != found {
                self.wrong.push(format!("dlvsym {}: another address", offer.symbol));
            }
        }
    }

    /// By `cuGetProcAddress` in both forms: what the driver answers, or the hook's stand-in for just that.
    fn check_asked(&mut self, name: &'static str, version: c_int, flags: u64) {
        let text = CString::new(name).unwrap();
        let two = |library| unsafe {
            let ask = std::mem::transmute::<*mut c_void, AskTwo>(symbol(library, "cuGetProcAddress_v2"));
            let (mut address, mut found) = (null_mut(), -1);
            (ask(text.as_ptr(), &raw mut address, version, flags, &raw mut found), address, found)
        };
        let one = |library| unsafe {
            let ask = std::mem::transmute::<*mut c_void, AskOne>(symbol(library, "cuGetProcAddress"));
            let mut address = null_mut();
            (ask(text.as_ptr(), &raw mut address, version, flags), address, 0)
        };
        for (form, real, seen) in
            [("v1", one(self.driver), one(self.hook)), ("v2", two(self.driver), two(self.hook))]
        {
            self.asked += 1;
            if (real.0, real.2) != (seen.0, seen.2) {
                self.wrong.push(format!("{form} {name} {version} {flags}: {seen:?} instead of {real:?}"));
            } else if real.0 == 0 && !real.1.is_null() {
                self.compare(&format!("{form} {name} {version} {flags}"), real.1, seen.1);
            }
        }
    }

    fn compare(&mut self, asked: &str, real: *mut c_void, seen: *mut c_void) {
        let (_, symbol) = place(real);
        let Some(watched) = self.watched.get(symbol.as_str()).copied() else {
            // An inner function of the driver, which has no export: it is the driver's own matter.
            return;
        };
        let exchanged = real != seen && !place(seen).0.ends_with("libsimcuda.so");
        self.exchanged += u32::from(exchanged);
        if watched != exchanged {
            let is = if exchanged { "exchanged" } else { "the driver's" };
            self.wrong.push(format!("{asked}: {symbol} is {is}"));
        }
    }
}
