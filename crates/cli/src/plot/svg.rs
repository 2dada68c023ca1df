//! Draws plots.

use std::fmt::Write as _;

use super::axis::Range;
use super::{COLOURS, Look, Plot, Point, Series};

/// Units of the drawing.
const WIDTH: f64 = 760.0;
const PLOT_HEIGHT: f64 = 320.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 56.0;
const LEGEND_LINE: f64 = 20.0;
/// About how wide a character is.
const CHARACTER: f64 = 6.6;
const TICKS: [usize; 2] = [8, 6];

/// What colours and fonts are; a page of several plots needs it once.
pub(crate) const STYLE: &str = "\
.plot{--ink:#1b1f24;--soft:#57606a;--grid:#d8dee4;--paper:#ffffff;\
--c0:#0b63b5;--c1:#c24e00;--c2:#11734b;--c3:#a3367f;--c4:#6b5b00;--c5:#5b3fb0;\
background:var(--paper);font:13px system-ui,-apple-system,'Segoe UI',sans-serif}\
@media(prefers-color-scheme:dark){.plot{--ink:#e6edf3;--soft:#9aa5b1;--grid:#30363d;--paper:#0d1117;\
--c0:#58a6ff;--c1:#ff9d57;--c2:#4cc38a;--c3:#f49ad1;--c4:#d8c34a;--c5:#b39dff}}\
.plot text{fill:var(--ink)}.plot .soft{fill:var(--soft)}.plot .title{font-size:15px;font-weight:600}\
.plot .grid{stroke:var(--grid);stroke-width:1}.plot .axis{stroke:var(--soft);stroke-width:1}\
.plot .line{fill:none;stroke-width:1.8;stroke-linejoin:round}.plot .dashes{stroke-dasharray:7 5}";

/// The places of values.
struct Frame {
    x: Range,
    y: Range,
    /// Where the legend ends and the values begin.
    top: f64,
}

impl Frame {
    fn of(plot: &Plot, top: f64) -> Frame {
        let points = || plot.series.iter().flat_map(|series| &series.points);
        let ends = |point: &Point| point.spread.unwrap_or([point.y; 2]).into_iter().chain([point.y]);
        Frame {
            x: plot.x.range(points().map(|point| point.x), TICKS[0]),
            y: plot.y.range(points().flat_map(|point| ends(point).collect::<Vec<_>>()), TICKS[1]),
            top,
        }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom() - self.y.place(value) * PLOT_HEIGHT
    }

    fn bottom(&self) -> f64 {
        self.top + PLOT_HEIGHT
    }
}

impl Plot {
    /// The drawing. Alone it is a whole file and brings its colours; else [`STYLE`] has to be on the page.
    pub(crate) fn svg(&self, is_alone: bool) -> String {
        let legend = legend(&self.series);
        let lines = legend.iter().map(|(_, _, line)| line + 1).max().unwrap_or(0);
        let frame = Frame::of(self, TOP + lines as f64 * LEGEND_LINE + 6.0);
        let height = frame.bottom() + BOTTOM;
        let title = escape(&self.title);
        let mut svg = format!(
            "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-label=\"{title}\"",
        );
        svg += &if is_alone {
            format!(" width=\"{WIDTH}\" height=\"{height}\"><style>{STYLE}</style>")
        } else {
            ">".into()
        };
        // White paper, or black in the dark, wherever the file is shown.
        let _ = write!(svg, "<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"var(--paper)\"/>");
        let _ = write!(svg, "<text class=\"title\" x=\"{LEFT}\" y=\"24\">{title}</text>");
        for (series, x, line) in &legend {
            key(&mut svg, series, *x, TOP + *line as f64 * LEGEND_LINE);
        }
        self.axes(&mut svg, &frame);
        self.series.iter().for_each(|series| lines_of(&mut svg, series, &frame));
        self.series.iter().for_each(|series| dots_of(&mut svg, series, &frame));
        self.labels(&mut svg, &frame);
        svg + "</svg>\n"
    }

    /// Labels where they cover no dot and no other label; a label without such a place is left out, and still told to
    /// who points at its dot.
    fn labels(&self, svg: &mut String, frame: &Frame) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let is_labelled = |point: &&Point| !point.label.is_empty();
        let dot = |point: &Point| {
            let (x, y) = (frame.x(point.x), frame.y(point.y));
            [x - 5.0, y - 5.0, x + 5.0, y + 5.0]
        };
        let mut taken: Vec<[f64; 4]> = points().filter(is_labelled).map(dot).collect();
        for point in points().filter(is_labelled) {
            let (x, y) = (frame.x(point.x), frame.y(point.y));
            let width = CHARACTER * point.label.chars().count() as f64;
            let places =
                [[9.0, -7.0], [9.0, 16.0], [-9.0 - width, -7.0], [-9.0 - width, 16.0]].map(|[dx, dy]| [x + dx, y + dy]);
            let rectangle = |[x, y]: [f64; 2]| [x, y - 11.0, x + width, y + 3.0];
            let is_inside = |[left, top, right, bottom]: [f64; 4]| {
                left >= LEFT && right <= WIDTH - 4.0 && top >= frame.top - 14.0 && bottom <= frame.bottom()
            };
            let is_free = |one: [f64; 4]| {
                taken.iter().all(|two| one[0] > two[2] || two[0] > one[2] || one[1] > two[3] || two[1] > one[3])
            };
            let free = places.into_iter().find(|place| is_inside(rectangle(*place)) && is_free(rectangle(*place)));
            if let Some([x, y]) = free {
                taken.push(rectangle([x, y]));
                let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(&point.label));
            }
        }
    }

    fn axes(&self, svg: &mut String, frame: &Frame) {
        let (right, bottom) = (WIDTH - RIGHT, frame.bottom());
        for (value, text) in &frame.y.ticks {
            let y = frame.y(*value);
            let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>");
            let (x, y) = (LEFT - 8.0, y + 4.5);
            let _ = write!(svg, "<text class=\"soft\" x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{text}</text>");
        }
        for (value, text) in &frame.x.ticks {
            let (x, end) = (frame.x(*value), bottom + 5.0);
            let _ = write!(svg, "<path class=\"axis\" d=\"M{x:.1} {bottom}V{end}\"/>");
            let y = bottom + 20.0;
            let _ = write!(svg, "<text class=\"soft\" x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{text}</text>");
        }
        let top = frame.top;
        let _ = write!(svg, "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {top}V{bottom}H{right}\"/>");
        let (x, y) = (LEFT.midpoint(right), bottom + 44.0);
        let _ = write!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", escape(&self.x.label));
        let (y, label) = (top.midpoint(bottom), escape(&self.y.label));
        let _ = write!(svg, "<text transform=\"translate(18 {y}) rotate(-90)\" text-anchor=\"middle\">{label}</text>");
    }
}

/// The series with names, where each begins, and in which line.
fn legend(series: &[Series]) -> Vec<(&Series, f64, usize)> {
    let (mut x, mut line, mut places) = (LEFT, 0, Vec::new());
    for series in series.iter().filter(|series| !series.name.is_empty()) {
        let width = 44.0 + CHARACTER * series.name.chars().count() as f64;
        if x > LEFT && x + width > WIDTH - RIGHT {
            (x, line) = (LEFT, line + 1);
        }
        places.push((series, x, line));
        x += width;
    }
    places
}

fn colour(series: &Series) -> String {
    format!("var(--c{})", series.colour % COLOURS)
}

fn key(svg: &mut String, series: &Series, x: f64, y: f64) {
    let (colour, middle) = (colour(series), x + 11.0);
    if series.look != Look::Dots {
        let class = if series.look == Look::Dashes { "line dashes" } else { "line" };
        let end = x + 22.0;
        let _ = write!(svg, "<path class=\"{class}\" stroke=\"{colour}\" d=\"M{x} {y}H{end}\"/>");
    }
    if matches!(series.look, Look::Dots | Look::DotsAndLine) {
        mark(svg, series.colour, middle, y, "");
    }
    let (x, y, name) = (x + 28.0, y + 4.5, escape(&series.name));
    let _ = write!(svg, "<text x=\"{x}\" y=\"{y}\">{name}</text>");
}

/// A dot: series differ in shape too. Its title is what a reader sees who points at it.
fn mark(svg: &mut String, colour: usize, x: f64, y: f64, title: &str) {
    let title = if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) };
    let fill = format!("fill=\"var(--c{})\"", colour % COLOURS);
    let _ = match colour % 4 {
        0 => write!(svg, "<circle {fill} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\">{title}</circle>"),
        1 => {
            let (x, y) = (x - 4.0, y - 4.0);
            write!(svg, "<rect {fill} x=\"{x:.1}\" y=\"{y:.1}\" width=\"8\" height=\"8\">{title}</rect>")
        }
        2 => write!(svg, "<path {fill} d=\"M{x:.1} {:.1}l5.5 9.5h-11z\">{title}</path>", y - 6.0),
        _ => write!(svg, "<path {fill} d=\"M{x:.1} {:.1}l5.5 5.5l-5.5 5.5l-5.5 -5.5z\">{title}</path>", y - 5.5),
    };
}

fn lines_of(svg: &mut String, series: &Series, frame: &Frame) {
    let colour = colour(series);
    for point in &series.points {
        if let Some([low, high]) = point.spread {
            let (x, low, high) = (frame.x(point.x), frame.y(low), frame.y(high));
            let _ = write!(svg, "<path class=\"line\" stroke=\"{colour}\" d=\"M{x:.1} {low:.1}V{high:.1}\"/>");
        }
    }
    if series.look == Look::Dots || series.points.len() < 2 {
        return;
    }
    let class = if series.look == Look::Dashes { "line dashes" } else { "line" };
    let _ = write!(svg, "<path class=\"{class}\" stroke=\"{colour}\" d=\"");
    for (index, point) in series.points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        let _ = write!(svg, "{command}{:.1} {:.1}", frame.x(point.x), frame.y(point.y));
    }
    svg.push_str("\"/>");
}

fn dots_of(svg: &mut String, series: &Series, frame: &Frame) {
    let lonely = series.points.len() < 2;
    for point in &series.points {
        let (x, y) = (frame.x(point.x), frame.y(point.y));
        if matches!(series.look, Look::Dots | Look::DotsAndLine) || lonely {
            let name = if point.label.is_empty() { &series.name } else { &point.label };
            let digits = |value: f64| super::number(value, value / 100.0);
            mark(svg, series.colour, x, y, &format!("{name}: {}, {}", digits(point.x), digits(point.y)));
        }
    }
}

/// Text for XML.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Not allowed in XML, not even escaped.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::Axis;
    use super::*;

    fn plot() -> Plot {
        let series = |name: &str, look, points: &[[f64; 2]]| Series {
            name: name.into(),
            colour: 1,
            look,
            points: points.iter().map(|[x, y]| Point::new(*x, *y)).collect(),
        };
        Plot {
            name: "test".into(),
            title: "a < b".into(),
            x: Axis::from_zero("size, MB"),
            y: Axis::logarithmic("speed, tokens/s"),
            series: vec![
                series("one & two", Look::DotsAndLine, &[[1.0, 10.0], [2.0, 20.0], [3.0, -1.0]]),
                series("nothing", Look::Line, &[[f64::NAN, 1.0]]),
            ],
        }
    }

    #[test]
    fn a_plot_has_labels_and_what_can_be_drawn() {
        let mut plot = plot();
        assert!(plot.clean() && plot.series.len() == 1 && plot.series[0].points.len() == 2);
        let svg = plot.svg(true);
        for part in ["a &lt; b", "one &amp; two", "size, MB", "speed, tokens/s", "<style>", "width=\"760\""] {
            assert!(svg.contains(part), "{part} {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 4);
        assert!(!plot.svg(false).contains("<style>"));
        plot.series.clear();
        assert!(!plot.clean());
    }

    #[test]
    fn names_go_on_in_the_next_line() {
        let mut plot = plot();
        plot.series = vec![Series { name: "a name of thirty characters ok".into(), ..plot.series[0].clone() }; 4];
        let lines: Vec<usize> = legend(&plot.series).iter().map(|(_, _, line)| *line).collect();
        assert_eq!(lines, [0, 0, 1, 1]);
    }
}
