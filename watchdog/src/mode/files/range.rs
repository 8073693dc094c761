//! Which part of a file a client wants (RFC 9110, 14.1.2). Several parts at once are answered with the whole file.

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The whole file.
    All,
    /// So many bytes, at least one, from an offset on.
    Of(u64, u64),
    /// What is wanted is not there.
    None,
}

/// The part that the value of `Range` names in a file of `size` bytes.
pub(crate) fn part(range: Option<&str>, size: u64) -> Part {
    let Some(wanted) = range.and_then(|range| range.strip_prefix("bytes=")) else { return Part::All };
    let Some((first, last)) = wanted.trim().split_once('-') else { return Part::All };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok());
    let (Some(first), Some(last)) = (number(first.trim()), number(last.trim())) else { return Part::All };
    match (first, last) {
        (None, None) => Part::All,
        (None, Some(0)) => Part::None,
        (None, Some(_)) if size == 0 => Part::All,
        (None, Some(count)) => Part::Of(size.saturating_sub(count), count.min(size)),
        (Some(first), _) if first >= size => Part::None,
        (Some(first), Some(last)) if last < first => Part::All,
        (Some(first), last) => Part::Of(first, last.map_or(size, |last| (last + 1).min(size)) - first),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_part_is_what_the_client_names() {
        for (range, wanted) in [
            ("bytes=0-3", Part::Of(0, 4)),
            ("bytes=4-", Part::Of(4, 6)),
            ("bytes=-3", Part::Of(7, 3)),
            ("bytes=-30", Part::Of(0, 10)),
            ("bytes=8-30", Part::Of(8, 2)),
            ("bytes=10-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=3-1", Part::All),
            ("bytes=0-1,3-4", Part::All),
            ("bytes=-", Part::All),
            ("bytes=a-b", Part::All),
            ("lines=0-3", Part::All),
        ] {
            assert_eq!(part(Some(range), 10), wanted, "{range}");
        }
        assert_eq!(part(None, 10), Part::All);
        assert_eq!(part(Some("bytes=-5"), 0), Part::All);
    }

    proptest! {
        #[test]
        fn a_part_lies_in_the_file(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0u64..1000) {
            if let Part::Of(start, length) = part(Some(&range), size) {
                prop_assert!(length > 0 && start + length <= size, "{start} {length} of {size}");
            }
        }
    }
}
