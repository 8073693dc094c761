//! What a cluster could leave behind on the machine: control groups, which are removed here, and whatever a look before and
//! after would show.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// With this begins the name of every cluster's control group.
pub const PREFIX: &str = "gpufn-cluster-";

/// A mounted hierarchy of control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub path: PathBuf,
    /// `rw,cpuset` and the like: what the kernel says of it.
    pub options: String,
    /// Whether it is of the second version.
    pub is_v2: bool,
}

impl Hierarchy {
    /// All of this machine.
    pub fn all() -> Result<Vec<Self>> {
        Ok(parse(&fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?))
    }

    /// Whether a new group takes processes at once: in the first version's cpuset it must be given processors before.
    pub fn takes_processes(&self) -> bool {
        !self.options.split(',').any(|option| option == "cpuset")
    }
}

/// The hierarchies in the text of `/proc/self/mounts` (proc(5)), each once.
fn parse(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let hierarchy = Hierarchy { path: path.into(), options: options.into(), is_v2: kind == "cgroup2" };
        if matches!(kind, "cgroup" | "cgroup2") && !found.contains(&hierarchy) {
            found.push(hierarchy);
        }
    }
    found
}

/// Makes a control group in every hierarchy, and takes this process and those that it starts into one below it. So
/// whoever looks sees that the group is in use.
pub fn enter_group(name: &str) -> Result<()> {
    for hierarchy in Hierarchy::all()? {
        let group = hierarchy.path.join(name);
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
        if hierarchy.is_v2 {
            delegate(&hierarchy.path)?;
        }
        if hierarchy.takes_processes() {
            let own = group.join("system");
            fs::create_dir(&own).with_context(|| own.display().to_string())?;
            fs::write(own.join("cgroup.procs"), "0").with_context(|| own.display().to_string())?;
        }
    }
    Ok(())
}

/// Lets groups below the root of a hierarchy of the second version use its controllers. What is above pods is delegated
/// by the kubelet.
fn delegate(root: &Path) -> Result<()> {
    let controllers =
        fs::read_to_string(root.join("cgroup.controllers")).with_context(|| root.display().to_string())?;
    for controller in controllers.split_whitespace() {
        let path = root.join("cgroup.subtree_control");
        fs::write(&path, format!("+{controller}"))
            .with_context(|| format!("{}: controller {controller}", path.display()))?;
    }
    Ok(())
}

/// Removes a group and those below it, if no process is in them.
pub fn remove_group(name: &str) -> Result<()> {
    for hierarchy in Hierarchy::all()? {
        remove_tree(&hierarchy.path.join(name))?;
    }
    Ok(())
}

/// Removes the groups of clusters that have ended, and says which.
pub fn remove_unused_groups() -> Result<BTreeSet<String>> {
    let unused: BTreeSet<_> = groups()?.into_iter().filter(|name| !is_used(name)).collect();
    unused.iter().try_for_each(|name| remove_group(name))?;
    Ok(unused)
}

/// The groups of all clusters.
pub fn groups() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for hierarchy in Hierarchy::all()? {
        let entries = fs::read_dir(&hierarchy.path).with_context(|| hierarchy.path.display().to_string())?;
        let entries = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.extend(entries.filter(|name| name.starts_with(PREFIX)));
    }
    Ok(names)
}

fn is_used(name: &str) -> bool {
    Hierarchy::all().is_ok_and(|all| all.iter().any(|hierarchy| has_process(&hierarchy.path.join(name))))
}

fn has_process(group: &Path) -> bool {
    let own = fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty());
    own || children(group).iter().any(|child| has_process(child))
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(group: &Path) -> Result<()> {
    for child in children(group) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| group.display().to_string())
        }
        _ => Ok(()),
    }
}

/// What of the machine a cluster could have changed. Equal before and after, if it left nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    groups: BTreeSet<String>,
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    entries: BTreeSet<PathBuf>,
    settings: BTreeSet<String>,
}

impl Look {
    /// How the machine is now.
    pub fn take() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let settings =
            ["kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "net/ipv4/ip_forward"];
        let setting = |name: &str| {
            let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
            format!("{name} = {}", value.trim())
        };
        let links = list(Path::new("/sys/class/net")).into_iter();
        Ok(Self {
            groups: groups()?,
            mounts: mounts.lines().map(ToString::to_string).collect(),
            links: links.map(|path| path.display().to_string()).collect(),
            entries: ["/run", "/var/lib", "/var/log", "/etc"]
                .into_iter()
                .flat_map(|at| list(Path::new(at)))
                .collect(),
            settings: settings.map(setting).into(),
        })
    }

    /// What is there now and was not `before`, or is otherwise; each a line.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut news = |kind: &str, now: &BTreeSet<String>, before: &BTreeSet<String>| {
            found.extend(now.difference(before).map(|new| format!("{kind} {new}")));
        };
        news("control group", &self.groups, &before.groups);
        news("mount", &self.mounts, &before.mounts);
        news("network link", &self.links, &before.links);
        news("setting", &self.settings, &before.settings);
        found.extend(self.entries.difference(&before.entries).map(|new| format!("file {}", new.display())));
        found
    }
}

fn list(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found_once() {
        let text = "proc /proc proc rw 0 0\n\
            cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let found = parse(text);
        let summary: Vec<_> = found
            .iter()
            .map(|found| (found.path.to_str().unwrap(), found.is_v2, found.takes_processes()))
            .collect();
        let expected = [
            ("/sys/fs/cgroup/cpuset", false, false),
            ("/sys/fs/cgroup/memory", false, true),
            ("/sys/fs/cgroup/unified", true, true),
        ];
        assert_eq!(summary, expected);
    }

    #[test]
    fn what_is_new_is_told_and_what_was_there_before_is_not() {
        let before = Look::take().unwrap();
        assert_eq!(before.since(&before), Vec::<String>::new());
        let mut after = before.clone();
        after.mounts.insert("tmpfs /run/gpufn-cluster tmpfs rw 0 0".into());
        after.entries.insert("/var/lib/kubelet".into());
        assert_eq!(
            after.since(&before),
            ["mount tmpfs /run/gpufn-cluster tmpfs rw 0 0", "file /var/lib/kubelet"]
        );
    }
}
