//! Two panels of curves on logarithmic axes, as SVG.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Colours that the colour-blind can tell apart (Okabe and Ito), readable on white.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 0, 0),
    RGBColor(120, 120, 120),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
];
const FONT: &str = "sans-serif";

/// A kind of attention.
pub(crate) struct Curve {
    name: &'static str,
    /// Tokens, milliseconds.
    pub(crate) time: Vec<(f64, f64)>,
    /// Tokens, MiB.
    pub(crate) memory: Vec<(f64, f64)>,
}

impl Curve {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, time: Vec::new(), memory: Vec::new() }
    }
}

/// Draws time and memory side by side, with the operands' size beside the latter.
pub(crate) fn draw(
    file: &Path,
    curves: &[Curve],
    operands: &[(f64, f64)],
    caption: &str,
) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (1200, 640)).into_drawing_area();
    // GitHub shows pictures on the reader's background, which may be dark.
    root.fill(&WHITE)?;
    let (panels, foot) = root.split_vertically(600);
    let (left, right) = panels.split_horizontally(600);
    let of = |list: fn(&Curve) -> &Vec<(f64, f64)>| {
        let coloured = curves.iter().zip(COLOURS.iter().cycle());
        coloured.map(move |(curve, &colour)| (curve.name, list(curve).as_slice(), colour)).collect::<Vec<_>>()
    };
    panel(&left, "time of a call, ms", &of(|curve| &curve.time))?;
    let mut memory = of(|curve| &curve.memory);
    memory.push(("q, k, v and output", operands, RGBColor(204, 121, 167)));
    panel(&right, "memory beside operands and plan, MiB", &memory)?;
    let style = TextStyle::from((FONT, 16).into_font()).pos(Pos::new(HPos::Center, VPos::Center));
    foot.draw(&Text::new(caption, (600, 18), style))?;
    root.present()?;
    Ok(())
}

/// What is drawn of a curve: its name, points and colour.
type Drawn<'a> = (&'a str, &'a [(f64, f64)], RGBColor);

fn panel(area: &Area<'_>, title: &str, curves: &[Drawn<'_>]) -> Result<(), Box<dyn Error>> {
    let points = || curves.iter().flat_map(|(_, points, _)| points.iter().copied());
    let (left, right) = bounds(points().map(|(x, _)| x)).ok_or("no length to draw")?;
    let (low, high) = bounds(points().map(|(_, y)| y)).ok_or("nothing to draw")?;
    // Whole decades, and above the curves room for the legend.
    let [low, high] = [low.log10().floor(), high.log10().ceil() + 1.0].map(|power| 10f64.powf(power));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 22))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d((left * 0.9..right * 1.1).log_scale().base(2.0), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(221, 221, 221))
        .x_desc("tokens")
        .x_labels(9)
        .x_label_formatter(&|x| label(*x))
        .y_label_formatter(&|y| label(*y))
        .label_style((FONT, 17))
        .axis_desc_style((FONT, 19))
        .draw()?;
    for &(name, points, colour) in curves {
        let style = colour.stroke_width(3);
        let drawn = points.iter().copied().filter(|&(_, y)| y > 0.0);
        let line = LineSeries::new(drawn, style.filled()).point_size(4);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style);
        chart.draw_series(line)?.label(name).legend(key);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(RGBColor(187, 187, 187))
        .label_font((FONT, 17))
        .legend_area_size(32)
        .margin(8)
        .draw()?;
    Ok(())
}

/// The smallest and the largest of the positive ones.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let widen = |found: Option<(f64, f64)>, x: f64| {
        Some(found.map_or((x, x), |(low, high)| (x.min(low), x.max(high))))
    };
    values.filter(|&x| x > 0.0).fold(None, widen)
}

/// A power, without the digits of its rounding.
fn label(x: f64) -> String {
    let digits = format!("{x:.4}");
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}
