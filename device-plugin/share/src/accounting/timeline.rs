//! One context's events as points on one line, and how much of that line was busy.
//!
//! Events can only be compared in pairs, with a float of milliseconds: the line's origin moves along, so that the float
//! stays exact. It asks nothing itself: callers say how far apart two events lie that have happened.

use crate::quota::BusyUnion;
use crate::units::Nanos;

/// The origin moves once it is so far back: a float of 2 s in milliseconds is exact to 0.2 µs.
const FAR: Nanos = Nanos::from_secs(2);

/// When work occupied the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it began.
    pub start: Nanos,
    /// When it ended.
    pub end: Nanos,
}

impl Span {
    /// How long it took.
    pub fn length(self) -> Nanos {
        self.end.since(self.start)
    }
}

/// The line of one context. An event is named by a number.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The event at the origin, which is kept from reuse, and its place.
    origin: Option<(usize, Nanos)>,
    busy: BusyUnion,
}

impl Timeline {
    /// Where the two events lie, if `elapsed` (milliseconds from the first event to the second) can tell.
    pub fn span(
        &mut self,
        start: usize,
        end: usize,
        elapsed: impl Fn(usize, usize) -> Option<f64>,
    ) -> Option<Span> {
        // The first origin lies a while after zero, since work on other streams may have begun before it.
        let (origin, place) = *self.origin.get_or_insert((start, FAR));
        let offset = if origin == start { 0.0 } else { elapsed(origin, start)? };
        let begin = shifted(place, offset);
        Some(Span { start: begin, end: shifted(begin, elapsed(start, end)?.max(0.0)) })
    }

    /// Marks the span as busy and returns how much of it was not so before.
    pub fn occupy(&mut self, span: Span) -> Nanos {
        self.busy.add(span.start, span.end)
    }

    /// The events that can be used again after a batch between `start` and `end`, which lay at `span`.
    pub fn release(&mut self, start: usize, end: usize, span: Option<Span>) -> impl Iterator<Item = usize> {
        let kept = self.origin.map(|(event, _)| event);
        let far = span.zip(self.origin).filter(|(span, (_, place))| span.end.since(*place) > FAR);
        if let Some((span, _)) = far {
            self.origin = Some((end, span.end));
        }
        let keeps = self.origin.map(|(event, _)| event);
        let old = kept.filter(|event| *event != start && *event != end);
        [Some(start), Some(end), old].into_iter().flatten().filter(move |event| Some(*event) != keeps)
    }
}

fn shifted(place: Nanos, millis: f64) -> Nanos {
    let by = Nanos::from_secs_f64(millis.abs() / 1e3);
    if millis < 0.0 { place.since(by) } else { place + by }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_before_the_origin_stays_in_order() {
        assert_eq!(shifted(FAR, -1.5), FAR.since(Nanos::from_micros(1_500)));
        assert_eq!(shifted(FAR, 0.5), FAR + Nanos::from_micros(500));
        assert_eq!(shifted(Nanos(5), -1.0), Nanos::ZERO);
    }

    #[test]
    fn events_are_placed_by_their_distance_from_the_origin() {
        // Event n happened at n ms.
        #[allow(clippy::cast_precision_loss)] // Small numbers.
        let elapsed = |from: usize, to: usize| Some(to as f64 - from as f64);
        let mut timeline = Timeline::default();
        let first = timeline.span(5, 7, elapsed);
        assert_eq!(first, Some(Span { start: FAR, end: FAR + Nanos::from_millis(2) }));
        let earlier = timeline.span(3, 6, elapsed);
        let start = FAR.since(Nanos::from_millis(2));
        assert_eq!(earlier, Some(Span { start, end: start + Nanos::from_millis(3) }));
        assert_eq!(timeline.span(8, 9, |_, _| None), None);
    }

    #[test]
    fn the_event_at_the_origin_is_not_used_again_until_the_origin_moves() {
        let mut timeline = Timeline { origin: Some((7, FAR)), ..Timeline::default() };
        let near = Some(Span { start: FAR, end: FAR + Nanos(5) });
        let far = Some(Span { start: FAR, end: FAR + FAR + Nanos(1) });
        assert_eq!(timeline.release(7, 8, near).collect::<Vec<_>>(), [8]);
        assert_eq!(timeline.release(4, 5, None).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(timeline.release(1, 2, far).collect::<Vec<_>>(), [1, 7]);
        assert_eq!(timeline.release(3, 4, near).collect::<Vec<_>>(), [3, 4]);
    }
}
