//! Series as inline SVG.
//!
//! Pure. Colours are classes of the page that it stands in, so that one drawing serves light and dark.

use std::fmt::Write;

use super::series::Series;

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Straight from point to point.
    Line,
    /// Holds each value until the next point.
    Step,
    /// Straight, and filled down to the axis.
    Area,
}

/// One line of a chart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    /// What it shows, for the text under the pointer.
    pub name: &'a str,
    /// CSS class that gives its colour.
    pub class: &'static str,
    /// How it is drawn.
    pub mark: Mark,
    /// Its points; a value that is not a number is a gap.
    pub series: &'a Series,
}

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero, evenly.
    Linear,
    /// From zero, evenly, in whole numbers.
    Count,
    /// Each tenfold step is as high as the one before.
    Log,
}

/// A chart over time.
#[derive(Clone, Debug)]
pub(crate) struct Chart<'a> {
    /// What it shows, for those who can't see it.
    pub title: String,
    /// Unit of the values, for the text under the pointer.
    pub unit: &'static str,
    /// Length of the time axis, seconds.
    pub seconds: f64,
    /// How values become heights.
    pub scale: Scale,
    /// Its lines, the first one at the back.
    pub lines: Vec<Line<'a>>,
    /// A value that is marked across the chart, and its name.
    pub rule: Option<(f64, String)>,
    /// Size, pixels.
    pub size: (f64, f64),
}

/// Room around the plot for the labels of the axes.
const LEFT: f64 = 38.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 32.0;

/// Largest value that an axis reaches; what is beyond stands at its end.
const LARGEST: f64 = 1e12;

/// Where values are on the drawing.
struct Frame {
    seconds: f64,
    low: f64,
    high: f64,
    scale: Scale,
    size: (f64, f64),
}

impl Frame {
    fn x(&self, at: f64) -> f64 {
        LEFT + (at / self.seconds).clamp(0.0, 1.0) * (self.size.0 - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear | Scale::Count => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        let bottom = self.size.1 - BOTTOM;
        bottom - part.clamp(0.0, 1.0) * (bottom - TOP)
    }
}

impl Chart<'_> {
    /// The drawing.
    pub(crate) fn svg(&self) -> String {
        let frame = self.frame();
        let (width, height) = self.size;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.title)
        );
        self.draw_axes(&mut svg, &frame);
        for line in &self.lines {
            draw_line(&mut svg, &frame, line);
        }
        if let Some((value, name)) = &self.rule {
            draw_rule(&mut svg, &frame, *value, name);
        }
        self.draw_hovers(&mut svg, &frame);
        svg + "</svg>"
    }

    fn frame(&self) -> Frame {
        let values = self.lines.iter().flat_map(|line| &line.series.0).map(|point| point.1);
        let values = values.chain(self.rule.iter().map(|rule| rule.0)).filter(|value| value.is_finite());
        let largest = values.fold(0.0, f64::max).min(LARGEST);
        let (low, high) = match self.scale {
            Scale::Linear => (0.0, nice_above(largest)),
            Scale::Count => (0.0, largest.ceil().max(2.0)),
            Scale::Log => (1.0, nice_above(largest.max(100.0))),
        };
        Frame { seconds: self.seconds.max(1.0), low, high, scale: self.scale, size: self.size }
    }

    fn draw_axes(&self, svg: &mut String, frame: &Frame) {
        let (width, height) = self.size;
        let ticks = match self.scale {
            Scale::Linear => linear_ticks(frame.high),
            Scale::Count => count_ticks(frame.high),
            Scale::Log => log_ticks(frame.high),
        };
        for tick in ticks {
            let y = frame.y(tick);
            let right = width - RIGHT;
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            );
            let (x, y) = (LEFT - 6.0, y + 3.5);
            let _ = write!(svg, "<text class=\"end\" x=\"{x}\" y=\"{y:.1}\">{}</text>", tick_label(tick));
        }
        let baseline = height - BOTTOM + 14.0;
        for tick in time_ticks(frame.seconds) {
            let x = frame.x(tick);
            let _ = write!(svg, "<text class=\"mid\" x=\"{x:.1}\" y=\"{baseline}\">{tick:.0}</text>");
        }
        let (middle, foot) = (f64::midpoint(LEFT, width - RIGHT), height - 4.0);
        let _ = write!(svg, "<text class=\"mid\" x=\"{middle}\" y=\"{foot}\">seconds</text>");
    }

    /// A column for each point of the longest line: the pointer over it tells the values there.
    fn draw_hovers(&self, svg: &mut String, frame: &Frame) {
        let Some(longest) = self.lines.iter().max_by_key(|line| line.series.0.len().min(MOST_HOVERS)) else {
            return;
        };
        let times: Vec<_> = longest.series.0.iter().map(|point| point.0).collect();
        let every = times.len().div_ceil(MOST_HOVERS).max(1);
        let times: Vec<_> = times.into_iter().step_by(every).collect();
        for (index, &at) in times.iter().enumerate() {
            let next = times.get(index + 1).copied().unwrap_or(frame.seconds);
            let (x, end) = (frame.x(at), frame.x(next));
            let height = self.size.1 - BOTTOM - TOP;
            let width = (end - x).max(0.0);
            let mut text = format!("{at:.1} s");
            for line in &self.lines {
                if let Some(value) = value_at(line.series, at) {
                    let _ = write!(text, "\n{}: {} {}", line.name, crate::figures::short(value), self.unit);
                }
            }
            let text = escape(text.trim_end());
            let _ = write!(
                svg,
                "<rect class=\"hover\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"><title>{text}</title></rect>"
            );
        }
    }
}

/// Most columns that tell their values; more would be narrower than a pointer can find.
const MOST_HOVERS: usize = 100;

fn draw_line(svg: &mut String, frame: &Frame, line: &Line<'_>) {
    for run in line.series.0.split(|point| !point.1.is_finite()) {
        let Some((first, last)) = run.first().zip(run.last()) else { continue };
        let mut path = format!("M{:.1} {:.1}", frame.x(first.0), frame.y(first.1));
        for &(at, value) in &run[1..] {
            let (x, y) = (frame.x(at), frame.y(value));
            let _ = match line.mark {
                Mark::Step => write!(path, "H{x:.1}V{y:.1}"),
                Mark::Line | Mark::Area => write!(path, "L{x:.1} {y:.1}"),
            };
        }
        // A lone value between gaps would have no length.
        if run.len() == 1 {
            path += "h1.5";
        }
        if line.mark == Mark::Area {
            let floor = frame.y(frame.low);
            let closed =
                format!("{path}L{:.1} {floor:.1}L{:.1} {floor:.1}Z", frame.x(last.0), frame.x(first.0));
            let _ = write!(svg, "<path class=\"area {}\" d=\"{closed}\"/>", line.class);
        }
        let _ = write!(svg, "<path class=\"line {}\" d=\"{path}\"/>", line.class);
    }
}

fn draw_rule(svg: &mut String, frame: &Frame, value: f64, name: &str) {
    if !value.is_finite() {
        return;
    }
    let (y, right) = (frame.y(value), frame.size.0 - RIGHT);
    let place = format!("x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"");
    // Its name is in the function's head and shown on hovering: as text here it would lie on the lines.
    let _ = write!(svg, "<line class=\"rule\" {place}><title>{}</title></line>", escape(name));
}

/// The last value at or before `at`.
fn value_at(series: &Series, at: f64) -> Option<f64> {
    let after = series.0.partition_point(|point| point.0 <= at + 1e-9);
    series.0.get(after.checked_sub(1)?).map(|point| point.1).filter(|value| value.is_finite())
}

/// The smallest of 1, 2, 4, 5, 10, 20, … that is not below `largest`.
fn nice_above(largest: f64) -> f64 {
    let decade = 10_f64.powf(largest.max(1.0).log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
        .iter()
        .map(|step| step * decade)
        .find(|&nice| nice >= largest * 0.999)
        .unwrap_or(10.0 * decade)
}

fn linear_ticks(high: f64) -> Vec<f64> {
    [0.0, 0.5, 1.0].iter().map(|part| part * high).collect()
}

/// Whole numbers from 0 to `high`, some left out if there are many.
fn count_ticks(high: f64) -> Vec<f64> {
    let step = (high / 4.0).ceil().max(1.0);
    let ticks = std::iter::successors(Some(0.0), |tick| Some(tick + step));
    ticks.take_while(|&tick| tick <= high + 1e-6).collect()
}

fn log_ticks(high: f64) -> Vec<f64> {
    let decades = std::iter::successors(Some(1.0), |tick| Some(tick * 10.0));
    decades.take_while(|&tick| tick <= high * 1.001).collect()
}

fn time_ticks(seconds: f64) -> Vec<f64> {
    let step = [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 50.0, 60.0, 100.0]
        .into_iter()
        .find(|step| seconds / step <= 5.01)
        .unwrap_or(seconds / 4.0);
    let ticks = std::iter::successors(Some(0.0), |tick| Some(tick + step));
    ticks.take_while(|&tick| tick <= seconds + 1e-6).collect()
}

fn tick_label(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", crate::figures::short(value / 1e6)),
        value if value >= 1e4 => format!("{}k", crate::figures::short(value / 1e3)),
        value => crate::figures::short(value),
    }
}

/// `text` as it may stand in HTML and SVG, between tags and in attributes. Control characters go.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' => safe.push_str("&#10;"),
            letter if letter.is_control() => {}
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fails unless every tag of `text` is closed in turn, every attribute quoted, and nothing else opens a tag.
    pub(crate) fn assert_well_formed(text: &str) {
        let mut open = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            assert!(!tag.contains('<'), "< in a tag: {tag}");
            assert_eq!(tag.matches('"').count() % 2, 0, "open quote: {tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "closed in turn");
            } else if !tag.ends_with('/') && !tag.starts_with('!') {
                open.push(tag.split_whitespace().next().unwrap_or_default());
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "left open: {open:?}");
    }

    fn chart(series: &Series, scale: Scale, mark: Mark) -> String {
        let lines = vec![Line { name: "a<b> & \"c\"", class: "one", mark, series }];
        let rule = Some((100.0, "p95<100ms".to_string()));
        let title = "x < \"y\"".into();
        Chart { title, unit: "ms", seconds: 75.0, scale, lines, rule, size: (300.0, 140.0) }.svg()
    }

    #[test]
    fn a_gap_breaks_the_line() {
        let series = Series(vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 5.0)]);
        let svg = chart(&series, Scale::Log, Mark::Line);
        assert_eq!(svg.matches("class=\"line one\"").count(), 2, "{svg}");
        assert_well_formed(&svg);
    }

    #[test]
    fn the_axis_ends_just_above_the_largest_value() {
        let cases =
            [(0.0, 1.0), (1.0, 1.0), (1.2, 1.5), (7.0, 8.0), (85.0, 100.0), (120.0, 150.0), (999.0, 1000.0)];
        for (largest, high) in cases {
            assert!((nice_above(largest) - high).abs() < 1e-6, "{largest}: {}", nice_above(largest));
        }
        assert_eq!(time_ticks(75.0), [0.0, 15.0, 30.0, 45.0, 60.0, 75.0]);
    }

    #[test]
    fn the_pointer_is_told_values_and_units() {
        let svg = chart(&Series(vec![(0.0, 12.345), (10.0, 20.0)]), Scale::Linear, Mark::Step);
        assert!(svg.contains("<title>10.0 s&#10;a&lt;b&gt; &amp; &quot;c&quot;: 20 ms</title>"), "{svg}");
    }

    proptest! {
        #[test]
        fn any_series_gives_a_well_formed_drawing_with_finite_numbers(
            points in proptest::collection::vec((any::<f64>(), any::<f64>()), 0..30),
            scale in prop_oneof![Just(Scale::Linear), Just(Scale::Count), Just(Scale::Log)],
            mark in prop_oneof![Just(Mark::Line), Just(Mark::Step), Just(Mark::Area)],
        ) {
            let points = points.into_iter().map(|(at, value)| (if at.is_finite() { at } else { 0.0 }, value)).collect();
            let svg = chart(&Series(points), scale, mark);
            assert_well_formed(&svg);
            for tag in svg.split('<').filter(|tag| !tag.starts_with("title") && !tag.starts_with("text")) {
                prop_assert!(!tag.contains("NaN") && !tag.contains("inf"), "{}", tag);
            }
        }

        #[test]
        fn no_text_breaks_out_of_a_page(text in "\\PC{0,60}") {
            prop_assert!(!escape(&text).contains(['<', '>', '"', '\'']));
        }
    }
}
