//! Plots as SVG: axes with round numbers, lines, dots and a legend. They need nothing from a network, and follow the
//! reader's choice of light or dark.

mod axis;
mod svg;

pub(crate) use axis::{Axis, Scale, number};
pub(crate) use svg::{STYLE, escape};

/// More series than that have colours of others.
pub(crate) const COLOURS: usize = 6;

/// A plot.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// A name for files and anchors: `quality-size`.
    pub(crate) name: String,
    /// What it shows.
    pub(crate) title: String,
    /// The horizontal axis.
    pub(crate) x: Axis,
    /// The vertical axis.
    pub(crate) y: Axis,
    /// What is drawn, the first one lowest.
    pub(crate) series: Vec<Series>,
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// In the legend; without a name it is not there.
    pub(crate) name: String,
    /// Which colour.
    pub(crate) colour: usize,
    /// How they are drawn.
    pub(crate) look: Look,
    /// In the order of the line.
    pub(crate) points: Vec<Point>,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Dots, their labels beside them.
    Dots,
    /// Dots with a line between them.
    DotsAndLine,
    /// A line alone.
    Line,
    /// A line of dashes.
    Dashes,
}

/// A value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Point {
    /// On the horizontal axis.
    pub(crate) x: f64,
    /// On the vertical axis.
    pub(crate) y: f64,
    /// The least and the most that it may be.
    pub(crate) spread: Option<[f64; 2]>,
    /// What stands beside it.
    pub(crate) label: String,
}

impl Point {
    /// A value without more.
    pub(crate) fn new(x: f64, y: f64) -> Point {
        Point { x, y, ..Point::default() }
    }
}

impl Plot {
    /// Takes out what can't be drawn: values that are not finite, on a logarithmic axis also those that are not
    /// positive. Whether there is anything left.
    pub(crate) fn clean(&mut self) -> bool {
        let fits = |axis: &Axis, value: f64| value.is_finite() && (axis.scale == Scale::Linear || value > 0.0);
        for series in &mut self.series {
            series.points.retain(|point| fits(&self.x, point.x) && fits(&self.y, point.y));
            for point in &mut series.points {
                point.spread = point.spread.filter(|ends| ends.iter().all(|end| fits(&self.y, *end)));
            }
        }
        self.series.retain(|series| !series.points.is_empty());
        !self.series.is_empty()
    }
}
