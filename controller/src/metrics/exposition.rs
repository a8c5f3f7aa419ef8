//! What a scrape answers: values put under the metrics of the list, and their text in both of Prometheus' formats.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, exemplar::Exemplar, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{ALL, Kind, Metric};

/// The text formats that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' own, 0.0.4: what everybody reads.
    Plain,
}

/// A value of a metric.
#[derive(Clone, Debug)]
pub enum Value {
    /// Of a counter or gauge, whole.
    Whole(u64),
    /// Of a counter or gauge.
    Real(f64),
    /// Of a histogram.
    Histogram(Histogram),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<&Histogram> for Value {
    fn from(value: &Histogram) -> Self {
        Self::Histogram(value.clone())
    }
}

#[derive(Clone, Debug)]
struct Sample {
    metric: Metric,
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// The values of a scrape.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    samples: Vec<Sample>,
}

impl Exposition {
    /// Puts a value in, with the values of the metric's labels in their order.
    pub fn put(&mut self, metric: Metric, labels: &[&str], value: impl Into<Value>) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let labels = metric.labels.iter().zip(labels).map(|(name, value)| (*name, escaped(value))).collect();
        self.samples.push(Sample { metric, labels, value: value.into() });
    }

    /// Takes in what another has.
    pub fn absorb(&mut self, other: Self) {
        self.samples.extend(other.samples);
    }

    /// The text. Metrics without a value at present have their help alone, so that each is always to be found.
    ///
    /// # Errors
    /// None that a `String` gives.
    pub fn text(self, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut open = String::new();
        text::encode(&mut open, &registry)?;
        Ok(match format {
            Format::OpenMetrics => open,
            Format::Plain => plain(&open),
        })
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in ALL {
            let (name, unit) = match metric.base_unit() {
                Some(unit) => {
                    let name = metric.family().strip_suffix(unit).and_then(|name| name.strip_suffix('_'));
                    (name.unwrap_or(metric.family()), Some(Unit::Other(unit.to_owned())))
                }
                None => (metric.family(), None),
            };
            let mut family = encoder.encode_descriptor(name, metric.help, unit.as_ref(), metric_type(metric.kind))?;
            let mut samples = self.samples.iter().filter(|sample| sample.metric.name == metric.name);
            if metric.kind == Kind::Info {
                samples.try_for_each(|sample| family.encode_info(&sample.labels))?;
            } else if metric.labels.is_empty() {
                samples.next().map_or(Ok(()), |sample| sample.encode(family))?;
            } else {
                samples.try_for_each(|sample| sample.encode(family.encode_family(&sample.labels)?))?;
            }
        }
        Ok(())
    }
}

impl Sample {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, f64>> = None;
        match (&self.value, self.metric.kind) {
            (Value::Histogram(histogram), _) => histogram.encode(encoder),
            (Value::Whole(value), Kind::Counter) => encoder.encode_counter(value, NO_EXEMPLAR),
            (Value::Real(value), Kind::Counter) => encoder.encode_counter(value, NO_EXEMPLAR),
            (Value::Whole(value), _) => encoder.encode_gauge(value),
            (Value::Real(value), _) => encoder.encode_gauge(value),
        }
    }
}

/// A label's value as it stands between quotes, which the encoder leaves to us.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

fn metric_type(kind: Kind) -> MetricType {
    match kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    }
}

/// OpenMetrics in the words of the older format: a counter's family has the name of its samples, an info is a gauge, and neither units
/// nor an end are told.
fn plain(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(word @ ("HELP" | "TYPE")), Some(family), Some(rest)) => {
                let metric = ALL.iter().find(|metric| metric.family() == family);
                let name = metric.map_or(family, |metric| metric.name);
                let rest = if word == "TYPE" && rest == "info" { "gauge" } else { rest };
                text.extend(["# ", word, " ", name, " ", rest, "\n"]);
            }
            (Some("#"), ..) => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{super::*, *};

    /// One of everything.
    fn full() -> Exposition {
        let mut full = Exposition::default();
        for metric in ALL {
            let labels: Vec<&str> = metric.labels.iter().map(|_| "a \"b\"\n\\c").collect();
            match metric.kind {
                Kind::Histogram => {
                    let histogram = Histogram::new([0.5, 1.0]);
                    [0.2, 0.7, 7.0].iter().for_each(|value| histogram.observe(*value));
                    full.put(*metric, &labels, &histogram);
                }
                _ => full.put(*metric, &labels, 3_u64),
            }
        }
        full
    }

    /// A reader of the text formats, strict and written apart from the writer.
    #[derive(Debug, Default)]
    struct Reader {
        help: BTreeSet<String>,
        kind: BTreeMap<String, String>,
        unit: BTreeMap<String, String>,
        /// Name, labels as they stand, value.
        samples: Vec<(String, String, f64)>,
        ended: bool,
    }

    fn read(text: &str) -> Reader {
        let mut reader = Reader::default();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            assert!(!reader.ended, "behind the end: {line}");
            if line == "# EOF" {
                reader.ended = true;
            } else if let Some(rest) = line.strip_prefix("# ") {
                let (word, rest) = rest.split_once(' ').unwrap();
                let (name, rest) = rest.split_once(' ').unwrap();
                let is_new = match word {
                    "HELP" => reader.help.insert(name.to_owned()),
                    "TYPE" => reader.kind.insert(name.to_owned(), rest.to_owned()).is_none(),
                    "UNIT" => reader.unit.insert(name.to_owned(), rest.to_owned()).is_none(),
                    _ => panic!("{line}"),
                };
                assert!(is_new, "twice: {line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = match series.split_once('{') {
                    Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
                    None => (series, ""),
                };
                assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
                assert!(labels.is_empty() != series.contains('{'), "no empty braces: {line}");
                reader.samples.push((name.to_owned(), labels.to_owned(), value.parse().unwrap()));
            }
        }
        reader
    }

    #[test]
    fn open_metrics_says_of_each_metric_what_it_is() {
        let reader = read(&full().text(Format::OpenMetrics).unwrap());
        assert!(reader.ended);
        let families: Vec<&str> = ALL.iter().map(Metric::family).collect();
        assert_eq!(reader.help, families.iter().map(|family| (*family).to_owned()).collect());
        for metric in ALL {
            let family = metric.family();
            assert_eq!(reader.kind[family], metric.kind.to_string());
            assert_eq!(reader.unit.get(family).map(String::as_str), metric.base_unit(), "{family}");
            let values: Vec<f64> =
                reader.samples.iter().filter(|(name, ..)| name == metric.name).map(|(.., value)| *value).collect();
            match metric.kind {
                Kind::Counter | Kind::Gauge => assert_eq!(values, [3.0], "{family}"),
                Kind::Info => assert_eq!(values, [1.0], "{family}"),
                Kind::Histogram => {
                    let of = |suffix: &str| -> Vec<(String, f64)> {
                        let name = format!("{family}{suffix}");
                        let of = reader.samples.iter().filter(|(sample, ..)| *sample == name);
                        of.map(|(_, labels, value)| (labels.split(',').next().unwrap().to_owned(), *value)).collect()
                    };
                    let buckets = [("le=\"0.5\"", 1.0), ("le=\"1.0\"", 2.0), ("le=\"+Inf\"", 3.0)];
                    assert_eq!(of("_bucket"), buckets.map(|(le, value)| (le.to_owned(), value)));
                    assert_eq!(of("_count")[0].1, 3.0);
                }
            }
            let labels = &reader.samples.iter().find(|(name, ..)| name.starts_with(family)).unwrap().1;
            for label in metric.labels {
                assert!(labels.contains(&format!(r#"{label}="a \"b\"\n\\c""#)), "escaped: {labels}");
            }
        }
    }

    #[test]
    fn the_plain_format_names_families_as_their_samples() {
        let text = full().text(Format::Plain).unwrap();
        let reader = read(&text);
        assert!(!reader.ended && reader.unit.is_empty());
        assert_eq!(reader.help, ALL.iter().map(|metric| metric.name.to_owned()).collect());
        assert_eq!(reader.kind["shunt_build_info"], "gauge");
        assert_eq!(reader.kind["process_cpu_seconds_total"], "counter");
        for (name, ..) in &reader.samples {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let kind = reader.kind.get(name).or_else(|| family.and_then(|family| reader.kind.get(family)));
            assert!(kind.is_some(), "{name} has no type");
        }
    }

    #[test]
    fn a_metric_without_a_value_keeps_its_help() {
        let reader = read(&Exposition::default().text(Format::OpenMetrics).unwrap());
        assert_eq!((reader.help.len(), reader.samples.len()), (ALL.len(), 0));
    }
}
