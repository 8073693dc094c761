//! Which replica a request goes to. Pure.

/// A replica that may take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// A parked one has to be woken first.
    pub(crate) parked: bool,
    /// Requests that it has.
    pub(crate) in_flight: u32,
}

/// Position of the one with the fewest requests; a parked one only if all are, and among equals the first.
pub(crate) fn choose(candidates: impl Iterator<Item = Option<Candidate>>) -> Option<usize> {
    candidates
        .enumerate()
        .filter_map(|(index, candidate)| Some((index, candidate?)))
        .min_by_key(|(_, candidate)| (candidate.parked, candidate.in_flight))
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(candidates: &[Option<(bool, u32)>]) -> Option<usize> {
        let as_candidate = |&(parked, in_flight): &(bool, u32)| Candidate { parked, in_flight };
        choose(candidates.iter().map(|c| c.as_ref().map(as_candidate)))
    }

    #[test]
    fn the_least_busy_ready_replica_is_taken() {
        assert_eq!(pick(&[Some((false, 3)), Some((false, 1)), Some((false, 2))]), Some(1));
        assert_eq!(pick(&[Some((false, 1)), Some((false, 1))]), Some(0));
        assert_eq!(pick(&[None, Some((false, 9))]), Some(1));
        assert_eq!(pick(&[None]), None);
    }

    #[test]
    fn a_parked_replica_is_woken_only_if_all_are_parked() {
        assert_eq!(pick(&[Some((true, 0)), Some((false, 9))]), Some(1));
        assert_eq!(pick(&[Some((true, 1)), Some((true, 0))]), Some(1));
    }
}
