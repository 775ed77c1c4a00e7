//! Latency over size, as a picture: a line for each way of handing over, p50 solid and p99 thin.

use plotters::prelude::*;

use crate::{
    BenchError, Report, Row, failed,
    order::{Read, Write},
};

/// Width and height, pixels.
const SIZE: (u32, u32) = (960, 600);

/// The latencies of `report` as an SVG document.
///
/// # Errors
/// There are none of more than one size.
pub fn svg(report: &Report) -> Result<String, BenchError> {
    let lines = lines(report);
    let points = || lines.iter().flat_map(|(_, rows)| rows.iter());
    let sizes = (points().map(|row| row.bytes).min(), points().map(|row| row.bytes).max());
    let (Some(small), Some(large)) = sizes else {
        return Err(BenchError::Failed("nothing to plot: no latency was measured at two sizes".to_owned()));
    };
    let times =
        |pick: fn(&crate::summary::Summary) -> u64| points().filter_map(move |row| row.one_way.as_ref().map(pick));
    let low = times(|times| times.p50).min().unwrap_or(1).min(report.floors.cache_line.p50).max(1);
    let high = times(|times| times.p99).max().unwrap_or(10);

    let mut text = String::new();
    {
        let error = |e: &dyn std::fmt::Display| failed("cannot draw")(e);
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| error(&e))?;
        let range_x = (small as f64..large as f64).log_scale();
        let range_y = (low as f64 * 0.7..high as f64 * 1.5).log_scale();
        let mut chart = ChartBuilder::on(&root)
            .caption("forebay: hand-over, one way (line p50, dots p99)", ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(range_x, range_y)
            .map_err(|e| error(&e))?;
        chart
            .configure_mesh()
            .x_desc("payload, bytes")
            .y_desc("ns")
            .x_label_formatter(&|bytes| short(*bytes))
            .y_label_formatter(&|ns| short_ns(*ns))
            .draw()
            .map_err(|e| error(&e))?;
        let floor = report.floors.cache_line.p50 as f64;
        let floor_line = [(small as f64, floor), (large as f64, floor)];
        chart
            .draw_series(LineSeries::new(floor_line, BLACK.mix(0.4)))
            .map_err(|e| error(&e))?
            .label("floor: a cache line")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK.mix(0.4)));
        for (i, (name, rows)) in lines.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let at = |pick: fn(&crate::summary::Summary) -> u64| {
                rows.iter().filter_map(move |row| Some((row.bytes as f64, pick(row.one_way.as_ref()?) as f64)))
            };
            chart
                .draw_series(LineSeries::new(at(|times| times.p50), color.stroke_width(2)).point_size(3))
                .map_err(|e| error(&e))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            chart
                .draw_series(at(|times| times.p99).map(|point| Circle::new(point, 2, color.mix(0.5))))
                .map_err(|e| error(&e))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .draw()
            .map_err(|e| error(&e))?;
        root.present().map_err(|e| error(&e))?;
    }
    Ok(text)
}

/// Rows that differ in size alone, where there are at least two.
fn lines(report: &Report) -> Vec<(String, Vec<&Row>)> {
    let mut lines: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in &report.latencies {
        let write = if row.write == Write::Copy { ", copied in" } else { "" };
        let read = if row.read == Read::All { ", read" } else { "" };
        let many = if row.consumers > 1 { format!(" × {}", row.consumers) } else { String::new() };
        let name = format!("{}, {}{many}, {}{write}{read}", row.direction.name(), row.kind, row.wait);
        match lines.iter_mut().find(|(found, _)| *found == name) {
            Some((_, rows)) => rows.push(row),
            None => lines.push((name, vec![row])),
        }
    }
    lines.retain(|(_, rows)| rows.len() > 1);
    for (_, rows) in &mut lines {
        rows.sort_by_key(|row| row.bytes);
    }
    lines
}

fn short(bytes: f64) -> String {
    match bytes {
        b if b >= f64::from(1 << 30) => format!("{:.0} GiB", b / f64::from(1 << 30)),
        b if b >= f64::from(1 << 20) => format!("{:.0} MiB", b / f64::from(1 << 20)),
        b if b >= 1024.0 => format!("{:.0} KiB", b / 1024.0),
        b => format!("{b:.0} B"),
    }
}

fn short_ns(ns: f64) -> String {
    match ns {
        ns if ns >= 1e6 => format!("{:.0} ms", ns / 1e6),
        ns if ns >= 1e3 => format!("{:.0} µs", ns / 1e3),
        ns => format!("{ns:.0} ns"),
    }
}
