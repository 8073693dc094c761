//! Programs that open the driver by a path, behind the preload form, with the simulated driver as the real one.
//!
//! The programs are C programs that the test compiles: what they get depends on how they were linked.

#![allow(clippy::unwrap_used, clippy::panic)] // A test ends where something is wrong with it.

#[path = "preload/rig.rs"]
mod rig;

use std::process::Command;
use std::time::Instant;

use rig::{NAMES, Rig};

const DRIVER: &str = "real/libcuda.so.550.54.15";

#[test]
fn a_driver_opened_by_any_path_or_name_is_the_proxy() {
    let rig = Rig::new();
    for how in ["open", "base"] {
        for name in ["real/libcuda.so.550.54.15", "real/libcuda.so.1", "real/libcuda.so"] {
            let said = rig.client("client").preload().run(&[how, &rig.at(name)]);
            assert_eq!(said.value("symbol"), rig.at("hook/libcuda.so.1"), "{how} {name}: {said:?}");
            assert!(said.has("driver answers"), "{how} {name}: {said:?}");
            // The one proxy, and behind it the driver that it was told of.
            assert_eq!(said.loaded(), [rig.at("hook/libcuda.so.1"), rig.at(DRIVER)], "{how} {name}");
        }
        for name in ["real/libnvidia-ml.so.550.54.15", "real/libnvidia-ml.so.1", "real/libnvidia-ml.so"] {
            let said = rig.client("client").preload().run(&[how, &rig.at(name)]);
            assert_eq!(said.value("symbol"), rig.at("hook/libcuda.so.1"), "{how} {name}: {said:?}");
            assert!(said.has("driver answers"), "{how} {name}: {said:?}");
        }
    }
    // Names too: no folder of the loader has them here.
    let said = rig.client("client").preload().run(&["open", "libcuda.so.1"]);
    assert_eq!(said.value("symbol"), rig.at("hook/libcuda.so.1"));
}

#[test]
fn every_way_to_ask_for_an_address_leads_to_the_proxy() {
    let rig = Rig::new();
    let (proxy, path) = (rig.at("hook/libcuda.so.1"), rig.at("real/libcuda.so.1"));
    let said = rig.client("client").preload().bound().run(&["open", &path]);
    for way in ["symbol", "address v1", "address v2"] {
        assert_eq!(said.value(way), proxy, "{way}: {said:?}");
    }
    // The driver gives its names no versions, so who asks for one gets nothing, behind the proxy as before it.
    assert_eq!(said.value("versioned symbol"), "nothing");
    let without = rig.client("client").run(&["open", &path]);
    assert_eq!(without.value("versioned symbol"), "nothing");
    assert_eq!(without.value("symbol"), rig.at("real/libcuda.so.1"));
}

#[test]
fn a_namespace_of_its_own_has_a_proxy_of_its_own() {
    let rig = Rig::new();
    let said = rig.client("client").preload().run(&["new", &rig.at("real/libcuda.so.1")]);
    assert_eq!(said.value("symbol"), rig.at("hook/libcuda.so.1"), "{said:?}");
    assert!(said.has("driver answers"), "{said:?}");
}

#[test]
fn a_proxy_that_covers_the_drivers_own_path_opens_the_real_one() {
    let rig = Rig::new();
    // What a bind mount over the driver's file looks like, with the real one moved aside.
    let covered = rig.at("covered/libcuda.so.1");
    for form in ["LD_PRELOAD", "LD_AUDIT"] {
        let said = rig.client("linked-with-covered").form(form).run(&["linked"]);
        // The linked name was found by RPATH. The preloaded form does not see that, the auditing one does.
        let proxy = if form == "LD_PRELOAD" { covered.clone() } else { rig.at("hook/libcuda.so.1") };
        assert_eq!(said.value("direct"), proxy, "{form}: {said:?}");
        assert_eq!(said.loaded(), [proxy, rig.at(DRIVER)], "{form}");
        assert!(said.has("driver answers"), "{form}: {said:?}");
    }
}

#[test]
fn what_else_is_opened_is_what_it_was() {
    let rig = Rig::new();
    for name in ["libplugin.so", "libno-such.so", "./libno-such.so"] {
        // By modules, which find it beside themselves ($ORIGIN), and by the program, which does not.
        for how in ["module", "deep", "other"] {
            let run = |form: &str| {
                rig.client("client").form(form).env("MODULE", "host/libhost.so").run(&[how, name])
            };
            let plain = run("");
            let found = how != "other" && name == "libplugin.so";
            assert_eq!((plain.has("opened"), plain.has("error")), (found, !found), "{how} {name}: {plain:?}");
            assert_eq!(run("LD_PRELOAD"), plain, "{how} {name}");
            assert_eq!(run("LD_AUDIT"), plain, "{how} {name}");
        }
    }
}

#[test]
fn a_program_linked_with_the_driver_by_rpath_meets_the_proxy_only_as_auditor() {
    let rig = Rig::new();
    let said = rig.client("linked-by-rpath").form("LD_AUDIT").bound().run(&["linked"]);
    for way in ["direct", "symbol", "address v1", "address v2"] {
        assert_eq!(said.value(way), rig.at("hook/libcuda.so.1"), "{way}: {said:?}");
    }
    assert_eq!(said.loaded(), [rig.at("hook/libcuda.so.1"), rig.at(DRIVER)]);
    assert!(said.has("driver answers"), "{said:?}");
    // What the README says that the preloaded form can't do.
    let said = rig.client("linked-by-rpath").preload().run(&["linked"]);
    assert_eq!(said.value("direct"), rig.at("real/libcuda.so.1"));
}

#[test]
fn a_module_bound_deeply_meets_the_proxy_only_as_auditor() {
    let rig = Rig::new();
    let path = rig.at("real/libcuda.so.1");
    let run =
        |form: &str| rig.client("client").form(form).env("MODULE", "host/libhost.so").run(&["deep", &path]);
    let said = run("LD_AUDIT");
    assert_eq!(said.value("symbol"), rig.at("hook/libcuda.so.1"), "{said:?}");
    assert!(said.has("driver answers"), "{said:?}");
    assert_eq!(run("LD_PRELOAD").value("symbol"), path);
}

#[test]
fn an_auditor_leads_every_name_and_path_to_the_proxy() {
    let rig = Rig::new();
    for folder in ["", "real/"] {
        for (name, _) in NAMES {
            let name = if folder.is_empty() { name.to_owned() } else { rig.at(&format!("{folder}{name}")) };
            let said = rig.client("client").form("LD_AUDIT").run(&["open", &name]);
            assert_eq!(said.value("symbol"), rig.at("hook/libcuda.so.1"), "{name}: {said:?}");
            assert!(said.has("driver answers"), "{name}: {said:?}");
        }
    }
}

#[test]
fn programs_that_the_function_starts_are_led_too_and_static_ones_go_on_as_before() {
    let rig = Rig::new();
    let path = rig.at("real/libcuda.so.1");
    let script = format!("{} open {path}", rig.at("client"));
    let said = rig.command("/bin/sh").preload().run(&["-c", &script]);
    assert_eq!(said.value("symbol"), rig.at("hook/libcuda.so.1"), "{said:?}");
    for form in ["LD_PRELOAD", "LD_AUDIT"] {
        let said = rig.client("static").form(form).run(&[]);
        assert!(said.has("as before"), "{form}: {said:?}");
    }
}

/// The median of many starts with the library, against the median of as many without, taken in turns.
#[test]
fn a_program_that_never_touches_cuda_starts_as_fast_as_before() {
    let rig = Rig::new();
    let start = |preload: bool| {
        let mut command = Command::new("/bin/true");
        if preload {
            command.env("LD_PRELOAD", rig.at("hook/libgpufn_preload.so"));
        }
        let begin = Instant::now();
        assert!(command.status().unwrap().success());
        begin.elapsed()
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        with.push(start(true));
        without.push(start(false));
    }
    let median = |times: &mut Vec<std::time::Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (with, without) = (median(&mut with), median(&mut without));
    println!("/bin/true: {with:?} with the library, {without:?} without");
    assert!(
        with.as_secs_f64() < 1.5 * without.as_secs_f64(),
        "{with:?} with the library, {without:?} without"
    );
}
