// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Results as pictures (SVG) that a person would put on a slide.

use crate::costs::OUTSIDE;
use crate::report;
use crate::results::{Figure, LIMIT, Results, Subject, transports};
use anyhow::{Result, anyhow};
use ivsmc_lab::measure::Transport;
use plotters::prelude::*;
use std::ops::Range;

/// In pixels.
const SIZE: (u32, u32) = (960, 560);
const FONT: &str = "sans-serif";

/// What lines are drawn of.
struct Lines {
    file: &'static str,
    title: &'static str,
    workload: &'static str,
    metric: &'static str,
    x: &'static str,
    y: &'static str,
    /// What a figure's place on the x axis is; `None` if it does not belong to the picture.
    at: fn(&Figure) -> Option<u64>,
    /// A bound that is shown beside them: its workload and its name.
    limit: (&'static str, &'static str),
}

const LINES: [Lines; 3] = [
    Lines {
        file: "latency-by-size.svg",
        title: "Latency (sockperf ping-pong, median)",
        workload: "sockperf-ping-pong",
        metric: "p50",
        x: "message size in bytes",
        y: "half a round trip in us",
        at: |figure| figure.point.size,
        limit: ("word", "a bare word in the window"),
    },
    Lines {
        file: "throughput-by-size.svg",
        title: "Throughput of one stream (sockperf)",
        workload: "sockperf-throughput",
        metric: "throughput",
        x: "message size in bytes",
        y: "MB/s",
        at: |figure| figure.point.size,
        limit: ("copies", "bare copies through the window, 64 KiB"),
    },
    Lines {
        file: "throughput-by-streams.svg",
        title: "Throughput of several streams (iperf3, 64 KiB writes)",
        workload: "iperf3",
        metric: "throughput",
        x: "streams",
        y: "MB/s",
        at: |figure| {
            figure
                .point
                .streams
                .filter(|_| figure.point.size == Some(64 << 10))
        },
        limit: ("copies", "bare copies through the window, 64 KiB"),
    },
];

fn colour(subject: Subject) -> RGBColor {
    match subject {
        Subject::Transport(Transport::TcpVirtioNet) => RGBColor(200, 80, 40),
        Subject::Transport(Transport::SmcdCopy) => RGBColor(90, 150, 210),
        Subject::Transport(Transport::SmcdNocopy) => RGBColor(20, 70, 150),
        Subject::Limit(_) => RGBColor(120, 120, 120),
    }
}

/// File names and contents of all pictures for which there are figures.
pub fn all(results: &Results) -> Result<Vec<(&'static str, String)>> {
    let mut pictures = Vec::new();
    for lines in &LINES {
        if let Some(svg) = draw_lines(results, lines)? {
            pictures.push((lines.file, svg));
        }
    }
    if let Some(svg) = draw_costs(results)? {
        pictures.push(("host-cpu-per-gb.svg", svg));
    }
    Ok(pictures)
}

fn title(results: &Results, title: &str) -> String {
    let e = &results.environment;
    format!("{title} - {} - {}", e.vmm, report::place(results))
}

/// plotters' errors are tied to its back end.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

/// From below the least to above the greatest.
fn around(values: impl Iterator<Item = f64> + Clone) -> Option<Range<f64>> {
    let least = values.clone().filter(|v| *v > 0.0).reduce(f64::min)?;
    let greatest = values.reduce(f64::max)?;
    Some(least / 1.4..greatest * 1.6)
}

fn draw_lines(results: &Results, lines: &Lines) -> Result<Option<String>> {
    let of = |subject: Subject| {
        let mut points: Vec<(f64, &Figure)> = results
            .figures
            .iter()
            .filter(|figure| {
                figure.workload == lines.workload
                    && figure.metric == lines.metric
                    && figure.transport == subject
            })
            .filter_map(|figure| Some(((lines.at)(figure)? as f64, figure)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let series: Vec<_> = transports().map(|subject| (subject, of(subject))).collect();
    let limit = results.figures.iter().find(|figure| {
        figure.transport == LIMIT
            && figure.workload == lines.limit.0
            && figure.metric == lines.metric
    });
    let points = || series.iter().flat_map(|(_, points)| points);
    let Some(x) = around(points().map(|(at, _)| *at)) else {
        return Ok(None);
    };
    let values = points().flat_map(|(_, figure)| {
        let (least, greatest) = figure.range();
        [least, greatest]
    });
    let Some(y) = around(values.chain(limit.map(Figure::median))) else {
        return Ok(None);
    };

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .caption(title(results, lines.title), (FONT, 17))
            .x_label_area_size(48)
            .y_label_area_size(76)
            .build_cartesian_2d(x.clone().log_scale(), y.log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc(lines.x)
            .y_desc(lines.y)
            .axis_desc_style((FONT, 16))
            .label_style((FONT, 14))
            .light_line_style(WHITE)
            .x_label_formatter(&|value| format!("{value:.0}"))
            .y_label_formatter(&|value| format!("{value}"))
            .draw()
            .map_err(failed)?;
        for (subject, points) in &series {
            let colour = colour(*subject);
            let line = points.iter().map(|(at, figure)| (*at, figure.median()));
            chart
                .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))
                .map_err(failed)?
                .label(report::name(results, *subject))
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(2))
                });
            chart
                .draw_series(line.map(|at| Circle::new(at, 4, colour.filled())))
                .map_err(failed)?;
            // The range of all repetitions.
            chart
                .draw_series(points.iter().map(|(at, figure)| {
                    let (least, greatest) = figure.range();
                    PathElement::new([(*at, least), (*at, greatest)], colour.stroke_width(1))
                }))
                .map_err(failed)?;
        }
        if let Some(limit) = limit {
            let (colour, value) = (colour(LIMIT), limit.median());
            chart
                .draw_series(LineSeries::new(
                    [(x.start, value), (x.end, value)],
                    colour.stroke_width(1),
                ))
                .map_err(failed)?
                .label(lines.limit.1)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(1))
                });
        }
        legend(&mut chart)?;
        root.present().map_err(failed)?;
    }
    Ok(Some(svg))
}

fn legend<'a, Backend, Coordinates>(
    chart: &mut ChartContext<'a, Backend, Coordinates>,
) -> Result<()>
where
    Backend: DrawingBackend + 'a,
    Coordinates: CoordTranslate,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font((FONT, 14))
        .draw()
        .map_err(failed)
}

/// Processor time for each GB of the largest messages.
fn draw_costs(results: &Results) -> Result<Option<String>> {
    let metrics = [
        ("host CPU: vcpu", "host: vCPUs"),
        (OUTSIDE, "host: all else"),
        ("guest CPU", "within the guests"),
    ];
    let point = format!("{} B", crate::workloads::LARGEST);
    let value = |subject, metric| {
        let figure = results.figure("sockperf-throughput", &point, subject, metric, "s/GB")?;
        Some(figure.median())
    };
    let bars: Vec<(Subject, usize, f64)> = transports()
        .flat_map(|subject| (0..metrics.len()).map(move |at| (subject, at)))
        .filter_map(|(subject, at)| Some((subject, at, value(subject, metrics[at].0)?)))
        .collect();
    let Some(greatest) = bars.iter().map(|bar| bar.2).reduce(f64::max) else {
        return Ok(None);
    };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let title = title(results, "Processor time of one stream of 64 KB messages");
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .caption(title, (FONT, 17))
            .x_label_area_size(48)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..metrics.len() as f64, 0.0..greatest * 1.3 + 0.001)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_desc("seconds per GB, both sides together")
            .axis_desc_style((FONT, 16))
            .label_style((FONT, 14))
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        let width = 0.8 / transports().count() as f64;
        for (number, subject) in transports().enumerate() {
            let colour = colour(subject);
            let left = |at: usize| at as f64 + 0.1 + number as f64 * width;
            let own = || bars.iter().filter(|bar| bar.0 == subject);
            chart
                .draw_series(own().map(|(_, at, value)| {
                    let corners = [(left(*at), 0.0), (left(*at) + 0.92 * width, *value)];
                    Rectangle::new(corners, colour.filled())
                }))
                .map_err(failed)?
                .label(report::name(results, subject))
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 20, y + 5)], colour.filled())
                });
            chart
                .draw_series(own().map(|(_, at, value)| {
                    Text::new(
                        format!("{value:.3}"),
                        (left(*at) + 0.02, value + greatest * 0.04),
                        (FONT, 14),
                    )
                }))
                .map_err(failed)?;
        }
        for (at, (_, words)) in metrics.iter().enumerate() {
            let place = (170 + at as i32 * 285, SIZE.1 as i32 - 48);
            root.draw(&Text::new(*words, place, (FONT, 16)))
                .map_err(failed)?;
        }
        legend(&mut chart)?;
        root.present().map_err(failed)?;
    }
    Ok(Some(svg))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Better;
    use crate::results::tests::{TCP, figure, results};

    #[test]
    fn pictures_are_drawn_of_what_there_is() {
        let p50 = ("p50", "us", Better::Lower);
        let cpu = ("guest CPU", "s/GB", Better::Lower);
        let all_results = results(vec![
            figure(
                "sockperf-ping-pong",
                ("64 B", 64, 1),
                TCP,
                p50,
                &[60.0, 70.0],
            ),
            figure("sockperf-ping-pong", ("1024 B", 1024, 1), TCP, p50, &[80.0]),
            figure("word", ("8 B", 8, 1), LIMIT, p50, &[0.5]),
            figure(
                "sockperf-throughput",
                ("65507 B", 65507, 1),
                TCP,
                cpu,
                &[2.0],
            ),
        ]);
        let pictures = all(&all_results).unwrap();
        let names: Vec<_> = pictures.iter().map(|picture| picture.0).collect();
        assert_eq!(names, ["latency-by-size.svg", "host-cpu-per-gb.svg"]);
        let latency = &pictures[0].1;
        for words in [
            "only ratios",
            "TCP over virtio-net (vhost-net)",
            "bare word",
            "message size in bytes",
        ] {
            assert!(latency.contains(words), "{words}");
        }
        assert!(all(&results(vec![])).unwrap().is_empty());
    }
}
