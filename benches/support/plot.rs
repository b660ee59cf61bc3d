//! Plots, as SVG.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 420);
/// The width of the plot. The names of the curves are to the right of it, where they cover no
/// curve.
const PLOT_WIDTH: u32 = 700;

/// A curve, or the outline of a histogram.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What surrounds the curves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    /// Whether the axis is logarithmic. Then all values must be above zero.
    pub(crate) log_x: bool,
    pub(crate) log_y: bool,
    /// Whether the points are marked.
    pub(crate) dots: bool,
}

/// Writes a plot. Writes nothing if there is nothing to draw.
pub(crate) fn write(file: &Path, frame: Frame<'_>, curves: &[Curve]) {
    let points: Vec<(f64, f64)> = curves.iter().flat_map(|curve| curve.points.iter().copied()).collect();
    if points.is_empty() {
        return;
    }
    let x = range(points.iter().map(|point| point.0), frame.log_x);
    let y = range(points.iter().map(|point| point.1), frame.log_y);
    let drawn = match (frame.log_x, frame.log_y) {
        (false, false) => draw(file, frame, curves, x, y),
        (true, false) => draw(file, frame, curves, x.log_scale(), y),
        (false, true) => draw(file, frame, curves, x, y.log_scale()),
        (true, true) => draw(file, frame, curves, x.log_scale(), y.log_scale()),
    };
    drawn.unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

/// Returns the range of an axis: from zero, or on a logarithmic axis from the lowest value, to a
/// little above the highest.
fn range(values: impl Iterator<Item = f64>, log: bool) -> Range<f64> {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let high = if high > 0.0 { high * 1.05 } else { 1.0 };
    if log { low * 0.95..high } else { 0.0..high }
}

fn draw<X, Y>(
    file: &Path,
    frame: Frame<'_>,
    curves: &[Curve],
    x: impl AsRangedCoord<CoordDescType = X, Value = f64>,
    y: impl AsRangedCoord<CoordDescType = Y, Value = f64>,
) -> Result<(), Box<dyn Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (plot, legend) = area.split_horizontally(PLOT_WIDTH);
    let mut chart = ChartBuilder::on(&plot)
        .caption(frame.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc(frame.x)
        .y_desc(frame.y)
        .x_label_formatter(&|&x| label(x))
        .y_label_formatter(&|&y| label(y))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for ((index, curve), y) in curves.iter().enumerate().zip((50..).step_by(18)) {
        let colour = Palette99::pick(index).to_rgba();
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?;
        if frame.dots {
            chart.draw_series(curve.points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
        }
        legend.draw(&PathElement::new([(0, y + 6), (16, y + 6)], colour.stroke_width(2)))?;
        legend.draw(&Text::new(curve.name.as_str(), (24, y), ("sans-serif", 12)))?;
    }
    area.present()?;
    Ok(())
}

/// `1.5M`, `300k`, `20`, `0.5`.
fn label(value: f64) -> String {
    let (number, unit) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{number:.2}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Returns the outline of a histogram of positive values, over bins that grow by a constant factor,
/// in percent of all values.
pub(crate) fn outline(values: &[f64]) -> Vec<(f64, f64)> {
    const PER_DECADE: f64 = 12.0;
    let edge = |bin: i32| 10f64.powf(f64::from(bin) / PER_DECADE);
    let bins: Vec<i32> = values.iter().map(|value| (value.log10() * PER_DECADE).floor() as i32).collect();
    let (Some(&low), Some(&high)) = (bins.iter().min(), bins.iter().max()) else { return Vec::new() };
    let mut points = vec![(edge(low), 0.0)];
    for bin in low..=high {
        let count = bins.iter().filter(|&&other| other == bin).count();
        let share = 100.0 * count as f64 / values.len() as f64;
        points.extend([(edge(bin), share), (edge(bin + 1), share)]);
    }
    points.push((edge(high + 1), 0.0));
    points
}
