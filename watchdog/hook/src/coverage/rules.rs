//! Reads `facts/coverage.txt`, for tests here and in `tests/`.

const DECLARED: &str = include_str!("../../facts/coverage.txt");

/// What is declared for the names that a pattern fits.
pub(crate) struct Rule {
    pub(crate) pattern: &'static str,
    pub(crate) treatment: &'static str,
}

/// All rules, in their order.
pub(crate) fn rules() -> Vec<Rule> {
    let lines = DECLARED.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let (pattern, treatment) = (words.next().unwrap(), words.next().unwrap_or_default());
            assert!(["gated", "charged", "watched", "passed"].contains(&treatment), "{line}");
            assert!(words.next().is_some(), "{line}: a rule needs a reason");
            Rule { pattern, treatment }
        })
        .collect()
}

/// Whether the pattern fits the name, or the stem that it is a form of.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let stem = ["_ptsz", "_ptds"].iter().fold(name, |name, suffix| name.strip_suffix(suffix).unwrap_or(name));
    let versions =
        ["_v2", "_v3", "_v4"].iter().fold(stem, |name, suffix| name.strip_suffix(suffix).unwrap_or(name));
    [name, stem, versions].iter().any(|name| matches(pattern, name))
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|left| {
            rest.is_empty()
                || (0..=left.len()).any(|at| left.is_char_boundary(at) && matches(rest, &left[at..]))
        }),
    }
}
