//! The plots, as SVG.

use std::error::Error;
use std::f64::consts::PI;
use std::path::{Path, PathBuf};

use candle_margin_loss::Group;
use candle_margin_loss::metrics::{ByGroup, quartiles};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::data::Dataset;
use crate::losses::{Loss, LossSettings};
use crate::report::{Gain, Interval, Spread, group_angles, over_seeds};
use crate::train::Outcome;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plotted = Result<(), Box<dyn Error>>;

const FONT: &str = "sans-serif";
const GROUPS: [(Group, RGBColor); 3] = [
    (Group::Many, RGBColor(0x1f, 0x77, 0xb4)),
    (Group::Medium, RGBColor(0xff, 0x9f, 0x1c)),
    (Group::Few, RGBColor(0xd1, 0x49, 0x5b)),
];
const ALL: RGBColor = RGBColor(0x60, 0x60, 0x60);

/// Draws all plots into `folder`; their paths.
pub fn all(
    folder: &Path,
    losses: &[Loss],
    dataset: &Dataset,
    outcomes: &[Outcome],
    gains: &[Gain],
    settings: impl Fn(Loss) -> LossSettings,
) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let names = ["accuracy.svg", "margins.svg", "angles.svg"].map(|name| folder.join(name));
    let wide = (160 + 100 * losses.len() as u32).max(960);
    {
        let root = SVGBackend::new(&names[0], (wide + 420, 460)).into_drawing_area();
        root.fill(&WHITE)?;
        let (left, right) = root.split_horizontally(wide);
        accuracy(&left, losses, dataset, outcomes)?;
        differences(&right, gains)?;
        root.present()?;
    }
    margins(SVGBackend::new(&names[1], (1060, 460)).into_drawing_area(), dataset, settings)?;
    angles(SVGBackend::new(&names[2], (wide, 460)).into_drawing_area(), losses, dataset, outcomes)?;
    Ok(names.into())
}

/// Bars of accuracy, a cluster a loss; the whiskers are a standard deviation over seeds either way.
fn accuracy(root: &Area, losses: &[Loss], dataset: &Dataset, outcomes: &[Outcome]) -> Plotted {
    type Pick<'a> = Box<dyn Fn(&ByGroup) -> Option<f64> + 'a>;
    let mut series: Vec<(&str, RGBColor, Pick)> = vec![("All", ALL, Box::new(|by: &ByGroup| Some(by.all)))];
    series.extend(
        GROUPS.map(|(group, colour)| (group.name(), colour, Box::new(move |by: &ByGroup| by.get(group)) as Pick)),
    );
    let value = |loss: Loss, pick: &Pick| over_seeds(outcomes, loss, |outcome| pick(&outcome.accuracy));
    let top = losses
        .iter()
        .flat_map(|&loss| series.iter().filter_map(move |(_, _, pick)| value(loss, pick)))
        .map(|spread| 100.0 * (spread.mean + spread.deviation.unwrap_or(0.0)))
        .fold(1.0, f64::max);
    let caption = "Test accuracy by group of classes";
    let mut chart = ChartBuilder::on(root)
        .caption(caption, (FONT, 20))
        .margin(12)
        .x_label_area_size(52)
        .y_label_area_size(56)
        .build_cartesian_2d(0f64..losses.len() as f64, 0f64..top * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .max_light_lines(1)
        .y_desc("accuracy, %")
        .label_style((FONT, 14))
        .y_label_formatter(&whole)
        .draw()?;
    names_below(root, &chart, losses)?;
    for (index, (_, colour, pick)) in series.iter().enumerate() {
        let place = |loss: usize| loss as f64 + 0.12 + 0.19 * index as f64;
        let spreads: Vec<(f64, Spread)> =
            losses.iter().enumerate().filter_map(|(l, &loss)| Some((place(l), value(loss, pick)?))).collect();
        if spreads.is_empty() {
            continue;
        }
        let bar =
            |&(x, spread): &(f64, Spread)| Rectangle::new([(x, 0.0), (x + 0.17, 100.0 * spread.mean)], colour.filled());
        chart.draw_series(spreads.iter().map(bar))?;
        let whisker = |(x, spread): (f64, Spread)| {
            let (mean, deviation) = (100.0 * spread.mean, 100.0 * spread.deviation?);
            Some(PathElement::new(
                [(x + 0.085, mean - deviation), (x + 0.085, mean + deviation)],
                BLACK.stroke_width(2),
            ))
        };
        chart.draw_series(spreads.into_iter().filter_map(whisker))?;
    }
    legend_above(root, &series.iter().map(|(name, colour, _)| (*name, *colour)).collect::<Vec<_>>())?;
    note(root, &format!("{}; black: ± a standard deviation over the seeds", dataset.groups.rule))
}

/// What the paper claims: differences between losses paired by seed, with their 95 % intervals.
fn differences(root: &Area, gains: &[Gain]) -> Plotted {
    type Pick = fn(&Gain) -> Option<Interval>;
    let series: [(&str, RGBColor, Pick); 2] = [("All", ALL, |gain| gain.all), ("Few", GROUPS[2].1, |gain| gain.few)];
    let ends = |of: Interval| [of.mean - of.half.unwrap_or(0.0), of.mean + of.half.unwrap_or(0.0)];
    let all = || gains.iter().flat_map(|gain| series.iter().filter_map(move |(_, _, of)| of(gain))).flat_map(ends);
    let (low, high) = (all().fold(-1.0, f64::min), all().fold(1.0, f64::max));
    let rows = gains.len() as f64;
    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .margin_top(38)
        .x_label_area_size(52)
        .margin_left(150)
        .build_cartesian_2d(1.05 * low..1.05 * high, rows..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .max_light_lines(1)
        .x_desc("points, paired by seed; bars: 95 % intervals")
        .label_style((FONT, 14))
        .x_label_formatter(&whole)
        .draw()?;
    chart.draw_series([PathElement::new([(0.0, 0.0), (0.0, rows)], ALL.stroke_width(1))])?;
    let style = TextStyle::from((FONT, 14).into_font()).pos(Pos::new(HPos::Right, VPos::Center));
    for (row, gain) in gains.iter().enumerate() {
        // Of the whole picture; texts are placed in this half.
        let (x, y) = chart.plotting_area().map_coordinate(&(1.05 * low, row as f64 + 0.5));
        let x = x - root.get_base_pixel().0;
        root.draw(&Text::new(format!("{} − {}", gain.with.name(), gain.without.name()), (x - 8, y), style.clone()))?;
        for (index, (_, colour, of)) in series.iter().enumerate() {
            let Some(interval) = of(gain) else { continue };
            let at = row as f64 + 0.35 + 0.3 * index as f64;
            let [from, to] = ends(interval);
            chart.draw_series([PathElement::new([(from, at), (to, at)], colour.stroke_width(2))])?;
            chart.draw_series([Circle::new((interval.mean, at), 4, colour.filled())])?;
        }
    }
    legend_above(root, &series.map(|(name, colour, _)| (name, colour)))
}

/// Fig. 2: the margins by class frequency, and DBM's whole angular margin by the sample's angle.
fn margins(root: Area, dataset: &Dataset, settings: impl Fn(Loss) -> LossSettings) -> Plotted {
    root.fill(&WHITE)?;
    let LossSettings { margin: k, tau, .. } = settings(Loss::DbmBs);
    let [arcface_margin, ldam_margin] = [Loss::Arcface, Loss::Ldam].map(|loss| settings(loss).margin);
    let largest = dataset.counts.imbalance_factor();
    let (left, right) = root.split_horizontally(530);
    let top = k.max(arcface_margin).max(ldam_margin).max(1e-3) * 1.15;
    let mut chart = ChartBuilder::on(&left)
        .caption("Margin by class frequency", (FONT, 20))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d((1f64..largest.max(1.01)).log_scale(), 0f64..top)?;
    chart
        .configure_mesh()
        .x_desc("ρ = training samples of the class / of the rarest class")
        .y_desc("margin: angle in radians, LDAM's on the cosine")
        .max_light_lines(1)
        .x_labels(6)
        .x_label_formatter(&whole)
        .label_style((FONT, 14))
        .draw()?;
    let curve = |margin: &dyn Fn(f64) -> f64| -> Vec<(f64, f64)> {
        (0..=200).map(|step| largest.powf(f64::from(step) / 200.0)).map(|rho| (rho, margin(rho))).collect()
    };
    let dbm = |rho: f64| k * rho.powf(-tau);
    let curves = [
        ("DBM, m_C", RGBColor(0xd1, 0x49, 0x5b), curve(&dbm)),
        ("DBM, m_C + m_I at θ = π/2", RGBColor(0xff, 0x9f, 0x1c), curve(&|rho| 1.5 * dbm(rho))),
        ("ArcFace", RGBColor(0x1f, 0x77, 0xb4), curve(&|_| arcface_margin)),
        ("LDAM (on the cosine)", RGBColor(0x2a, 0x9d, 0x8f), curve(&|rho| ldam_margin * rho.powf(-0.25))),
    ];
    for (name, colour, points) in curves {
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?.label(name).legend(legend(colour));
    }
    // Where the dataset's classes are.
    let classes = dataset
        .counts
        .rho()
        .into_iter()
        .map(|rho| Circle::new((rho, dbm(rho)), 2, RGBColor(0xd1, 0x49, 0x5b).filled()));
    chart.draw_series(classes)?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .label_font((FONT, 14))
        .draw()?;

    let mut chart = ChartBuilder::on(&right)
        .caption("DBM: margin of a hard positive by its angle", (FONT, 20))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d(0f64..180.0, 0f64..(2.2 * k).max(1e-3))?;
    chart
        .configure_mesh()
        .x_desc("angle θ to the true class's centre, degrees")
        .y_desc("m_C + m_I, radians (dashed: m_C alone)")
        .max_light_lines(1)
        .x_label_formatter(&whole)
        .label_style((FONT, 14))
        .draw()?;
    for (rho, colour) in
        [1.0, largest.powf(0.25), largest.sqrt(), largest].into_iter().zip([GROUPS[2].1, GROUPS[1].1, GROUPS[0].1, ALL])
    {
        let with_instance = |degrees: i32| {
            let difficulty = (1.0 - (f64::from(degrees) * PI / 180.0).cos()) / 2.0;
            (f64::from(degrees), dbm(rho) * (1.0 + difficulty))
        };
        chart
            .draw_series(LineSeries::new((0..=180).map(with_instance), colour.stroke_width(2)))?
            .label(format!("ρ = {rho:.1}"))
            .legend(legend(colour));
        chart.draw_series(DashedLineSeries::new([(0.0, dbm(rho)), (180.0, dbm(rho))], 4, 4, colour.stroke_width(1)))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .label_font((FONT, 14))
        .draw()?;
    Ok(root.present()?)
}

/// Fig. 4: distributions of the test samples' angles to their class centre by group, with quartiles; all seeds together.
fn angles(root: Area, losses: &[Loss], dataset: &Dataset, outcomes: &[Outcome]) -> Plotted {
    root.fill(&WHITE)?;
    let of = |loss: Loss, group: Group| -> Vec<f64> {
        let of_loss = outcomes.iter().filter(|outcome| outcome.loss == loss);
        of_loss.flat_map(|outcome| group_angles(dataset, outcome, Some(group))).collect()
    };
    let largest = outcomes.iter().flat_map(|outcome| &outcome.angles).copied().fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption("Angular distance of test samples to their class centre", (FONT, 20))
        .margin(12)
        .x_label_area_size(52)
        .y_label_area_size(56)
        .build_cartesian_2d(0f64..losses.len() as f64, 0f64..largest * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .max_light_lines(1)
        .y_desc("angle, degrees")
        .label_style((FONT, 14))
        .y_label_formatter(&whole)
        .draw()?;
    names_below(&root, &chart, losses)?;
    for (index, (group, colour)) in GROUPS.into_iter().enumerate() {
        for (position, &loss) in losses.iter().enumerate() {
            let values = of(loss, group);
            let Some(marks) = quartiles(&values) else { continue };
            let centre = position as f64 + 0.2 + 0.3 * index as f64;
            let density = Density::new(&values, largest);
            let half = |angle: f64| 0.14 * density.at(angle) / density.top;
            let outline: Vec<(f64, f64)> = density.grid().map(|angle| (centre + half(angle), angle)).collect();
            let back: Vec<(f64, f64)> = density.grid().rev().map(|angle| (centre - half(angle), angle)).collect();
            let outline: Vec<(f64, f64)> = outline.into_iter().chain(back).collect();
            chart.draw_series([Polygon::new(outline, colour.mix(0.75).filled())])?;
            for (mark, stroke) in [(marks.q1, 1), (marks.median, 2), (marks.q3, 1)] {
                let ends = [(centre - half(mark), mark), (centre + half(mark), mark)];
                chart.draw_series(DashedLineSeries::new(ends, 3, 2, BLACK.stroke_width(stroke)))?;
            }
        }
    }
    legend_above(&root, &GROUPS.map(|(group, colour)| (group.name(), colour)))?;
    note(&root, &format!("{}; dashed: quartiles", dataset.groups.rule))?;
    Ok(root.present()?)
}

/// A Gaussian kernel density by Scott's rule, on a grid over the sample.
struct Density {
    values: Vec<f64>,
    bandwidth: f64,
    low: f64,
    high: f64,
    top: f64,
}

impl Density {
    const STEPS: i32 = 80;

    fn new(values: &[f64], largest: f64) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let bandwidth = (deviation * n.powf(-0.2)).max(1e-3 * largest);
        let mut density = Self { values: values.to_vec(), bandwidth, low, high, top: 1.0 };
        density.top = density.grid().map(|angle| density.at(angle)).fold(f64::MIN_POSITIVE, f64::max);
        density
    }

    fn grid(&self) -> impl DoubleEndedIterator<Item = f64> + use<> {
        let (low, span) = (self.low, self.high - self.low);
        (0..=Self::STEPS).map(move |step| low + span * f64::from(step) / f64::from(Self::STEPS))
    }

    /// Not normalised.
    fn at(&self, angle: f64) -> f64 {
        self.values.iter().map(|value| (-0.5 * ((angle - value) / self.bandwidth).powi(2)).exp()).sum()
    }
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The losses' names, each below the middle of its cluster.
fn names_below(root: &Area, chart: &Chart, losses: &[Loss]) -> Plotted {
    let style = TextStyle::from((FONT, 14).into_font()).pos(Pos::new(HPos::Center, VPos::Top));
    for (position, loss) in losses.iter().enumerate() {
        let (x, y) = chart.plotting_area().map_coordinate(&(position as f64 + 0.5, 0.0));
        root.draw(&Text::new(loss.name(), (x, y + 8), style.clone()))?;
    }
    Ok(())
}

fn legend(colour: RGBColor) -> impl Fn((i32, i32)) -> Rectangle<(i32, i32)> {
    move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled())
}

/// Names with their colours, in the upper right corner beside the caption.
fn legend_above(root: &Area, names: &[(&str, RGBColor)]) -> Plotted {
    let (width, _) = root.dim_in_pixel();
    let left = width as i32 - 78 * names.len() as i32;
    for (index, (name, colour)) in names.iter().enumerate() {
        let x = left + 78 * index as i32;
        root.draw(&Rectangle::new([(x, 16), (x + 14, 28)], colour.filled()))?;
        root.draw(&Text::new(*name, (x + 20, 16), (FONT, 14).into_font()))?;
    }
    Ok(())
}

fn whole(value: &f64) -> String {
    format!("{value:.0}")
}

/// A line of small print at the bottom.
fn note(root: &Area, text: &str) -> Plotted {
    let (_, height) = root.dim_in_pixel();
    root.draw(&Text::new(text.to_string(), (68, height as i32 - 24), (FONT, 13).into_font().color(&ALL)))?;
    Ok(())
}
