//! How the hook comes before the driver in a container: each form of placement in a small root file system of its own, in
//! which the simulated driver lies where the container toolkit mounts the real one.
//!
//! What the forms do for which programs is the table in the hook's README, which is read here and must be right.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "placement/container.rs"]
mod container;

use std::collections::BTreeMap;
use std::path::PathBuf;

use container::{CLIENTS, Container, DRIVER, HOOK, NVML};
use device_plugin::cdi::{self, Placement};
use gpu_share::binding::{Binding, BindingId, GpuId, Owner};
use gpu_share::protocol::Bound;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Quota, SmShare};

/// Which clients meet the hook according to the column `form` of the README's table.
fn promised(form: &str) -> BTreeMap<String, bool> {
    let rows = include_str!("../../watchdog/hook/README.md")
        .lines()
        .skip_while(|line| !line.starts_with("| a program that asks by"))
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>())
        .collect::<Vec<_>>();
    let column = rows[0].iter().position(|cell| cell == form).unwrap_or_else(|| panic!("no column {form:?}"));
    let meets = |cell: &str| match cell {
        "hook" => true,
        "driver" => false,
        other => panic!("{other:?} in the table"),
    };
    rows.iter().skip(2).map(|row| (row[0].clone(), meets(&row[column]))).collect()
}

/// Runs every client before and after a later run of the toolkit's `ldconfig`; each must get what is promised.
fn check(form: &str, container: &Container) {
    let promised = promised(form);
    let [first, later] = container.run();
    for (name, _) in CLIENTS {
        for (when, said) in [("at first", &first[name]), ("after the toolkit's ldconfig", &later[name])] {
            let (file, place) = (said.symbol(), if promised[name] { "the hook" } else { "the driver" });
            let is_hook = container.is_hook(&file);
            assert_eq!(is_hook, promised[name], "{form}: {name}, {when}: {place} is promised: {said:?}");
            assert!(said.has("driver answers"), "{form}: {name}, {when}: {said:?}");
            let drivers = said.loaded().into_iter().filter(|file| !container.is_hook(file)).count();
            assert_eq!(drivers, 1, "{form}: {name}, {when}: one real library is open: {said:?}");
        }
    }
    assert_eq!(promised.len(), CLIENTS.len(), "the table's rows are the clients");
}

fn bound(driver: &str, nvml: &str, container: &Container) -> Bound {
    let quota = Quota::from_percent(20).unwrap();
    let binding = Binding {
        id: BindingId::try_from("b-1".to_string()).unwrap(),
        owner: Owner::default(),
        gpu: GpuId("GPU-0".into()),
        share: Share::new(SmShare::WHOLE, quota, quota, Bytes::gib(1)).unwrap(),
        grant: quota,
        row: 0,
    };
    let variables =
        [("GPUFN_BINDING", "b-1"), ("GPUFN_HOOK", HOOK), ("GPUFN_DRIVER", driver), ("GPUFN_NVML", nvml)];
    let env = variables.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
    // The programs never use the GPU, so nobody answers on the socket, but a runtime mounts it.
    let (page, socket) = (container.host("bindings/b-1/page"), container.host("node.sock"));
    Bound { binding, page, socket, env }
}

#[test]
fn by_the_library_path_names_lead_to_the_hook() {
    let mut container = Container::new();
    container.mount_hook();
    container.toolkit();
    container.env("LD_LIBRARY_PATH", HOOK);
    check("library path", &container);
}

#[test]
fn by_the_loaders_cache_names_lead_to_the_hook() {
    let mut container = Container::new();
    container.mount_hook();
    container.write("etc/ld.so.conf.d/00-gpufn.conf", &cdi::loader_configuration(HOOK.as_ref()));
    container.toolkit();
    check("cache", &container);
}

#[test]
fn by_a_cdi_device_names_lead_to_the_hook_whoever_runs_ldconfig_last() {
    for toolkit_first in [true, false] {
        let mut container = Container::new();
        let configuration = container.host("loader.conf");
        std::fs::write(&configuration, cdi::loader_configuration(HOOK.as_ref())).unwrap();
        let placement = Placement::Cache { configuration, toolkit: container.host("nvidia-cdi-hook") };
        let bound = bound(&container.driver(DRIVER), &container.driver(NVML), &container);
        let device = cdi::device(&bound, &placement).unwrap();
        if toolkit_first {
            container.toolkit();
        }
        container.apply(&cdi::spec(vec![device]));
        if !toolkit_first {
            container.toolkit();
        }
        check("CDI", &container);
    }
}

#[test]
fn over_the_drivers_files_every_program_meets_the_hook() {
    let mut container = Container::new();
    let files = [DRIVER, NVML].map(|name| PathBuf::from(container.driver(name))).to_vec();
    let placement = Placement::Cover { drivers: container.host("driver"), files };
    let (driver, nvml) = (format!("/run/gpufn/driver/{DRIVER}"), format!("/run/gpufn/driver/{NVML}"));
    let device = cdi::device(&bound(&driver, &nvml, &container), &placement).unwrap();
    container.mount_driver();
    container.apply(&cdi::spec(vec![device]));
    container.ldconfig();
    check("cover", &container);
}
