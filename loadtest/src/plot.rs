//! Line plots as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (560, 340);
const COLORS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x55, 0x55, 0x55),
];

/// A line of a plot.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A logarithmic axis, for values that span orders of magnitude.
pub struct Axis {
    pub title: &'static str,
    /// Formats the label of a value.
    pub label: fn(f64) -> String,
}

/// Draws the positive values of `lines`. `None`: there are none.
///
/// # Errors
/// The plotting library fails.
pub fn draw(title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> Result<Option<String>> {
    let drawn = |&&(x, y): &&(f64, f64)| x > 0.0 && y > 0.0;
    let all = || lines.iter().flat_map(|line| &line.points).filter(drawn);
    let (Some(xs), Some(ys)) = (range(all().map(|it| it.0)), range(all().map(|it| it.1))) else {
        return Ok(None);
    };
    let mut svg = String::new();
    draw_into(&mut svg, title, (x, xs), (y, ys), lines).map_err(|error| anyhow!("{error}"))?;
    Ok(Some(svg))
}

/// The powers of ten around the values, which are positive.
fn range(values: impl Iterator<Item = f64> + Clone) -> Option<std::ops::Range<f64>> {
    let least = values.clone().min_by(f64::total_cmp)?;
    let most = values.max_by(f64::total_cmp)?;
    let first = least.log10().floor();
    Some(10_f64.powf(first)..10_f64.powf(most.log10().ceil().max(first + 1.0)))
}

fn draw_into(
    svg: &mut String,
    title: &str,
    (x, xs): (&Axis, std::ops::Range<f64>),
    (y, ys): (&Axis, std::ops::Range<f64>),
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .margin_right(30)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(xs.log_scale(), ys.log_scale())?;
    chart
        .configure_mesh()
        .max_light_lines(1)
        .x_labels(6)
        .x_desc(x.title)
        .y_desc(y.title)
        .x_label_formatter(&|value| (x.label)(*value))
        .y_label_formatter(&|value| (y.label)(*value))
        .draw()?;
    for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
        let points: Vec<_> =
            line.points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 2, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXIS: Axis = Axis { title: "µs", label: |value| value.to_string() };

    fn line(points: &[(f64, f64)]) -> Line {
        Line { name: "gridcast".into(), points: points.to_vec() }
    }

    #[test]
    fn a_plot_has_its_title_and_the_name_of_each_line() {
        let lines = [line(&[(1.0, 10.0), (100.0, 20.0), (0.0, 5.0)]), line(&[(1.0, 1.0)])];
        let svg = draw("fan-out", &AXIS, &AXIS, &lines).expect("it can be drawn");
        let svg = svg.expect("there are points");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("fan-out") && svg.matches("gridcast").count() == 2);
    }

    #[test]
    fn a_range_goes_from_a_power_of_ten_to_another() {
        assert_eq!(range([200.0, 1_500.0].into_iter()), Some(100.0..10_000.0));
        assert_eq!(range([1.0].into_iter()), Some(1.0..10.0));
    }

    #[test]
    fn there_is_no_plot_of_nothing() {
        let lines = [line(&[]), line(&[(0.0, 1.0)])];
        assert_eq!(draw("", &AXIS, &AXIS, &lines).expect("nothing fails"), None);
    }
}
