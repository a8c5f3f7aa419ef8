//! Contenders that take turns.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{
    arena::Contender,
    figure::{Figure, median, shown},
    report::{Better, Comparison, Goal, Report, Standing},
    usage,
};

/// What one turn of a contender yields: some values of one measurement, and how many pieces of work it did for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<const N: usize = 1> {
    pub(crate) values: [f64; N],
    /// Not a number if nobody counts.
    pub(crate) work: f64,
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Self { values: [value], work: f64::NAN }
    }
}

/// Samples of each contender, in the contenders' order.
#[derive(Debug)]
pub(crate) struct Samples {
    contenders: Vec<Taken>,
}

#[derive(Clone, Debug, Default)]
struct Taken {
    name: &'static str,
    values: Vec<f64>,
    busy: Duration,
    work: f64,
}

impl Taken {
    /// Microseconds of CPU time for a piece of work, if anybody counted.
    fn cpu(&self) -> Option<f64> {
        (self.work > 0.0).then(|| self.busy.as_secs_f64() * 1e6 / self.work)
    }
}

impl Samples {
    /// Lets contenders take turns for some rounds, after one that doesn't count; a round alone counts.
    pub(crate) fn take<S: Into<Sample>>(
        rounds: usize,
        contenders: &[Contender<'_>],
        mut sample: impl FnMut(&Contender<'_>) -> Result<S>,
    ) -> Result<Self> {
        let [samples] = Self::take_several(rounds, contenders, |contender| sample(contender).map(Into::into))?;
        Ok(samples)
    }

    /// As [`Samples::take`], for measurements that yield several values at once.
    pub(crate) fn take_several<const N: usize>(
        rounds: usize,
        contenders: &[Contender<'_>],
        mut sample: impl FnMut(&Contender<'_>) -> Result<Sample<N>>,
    ) -> Result<[Self; N]> {
        let names = contenders.iter().map(|contender| Taken { name: contender.name, ..Taken::default() });
        let mut all: [Vec<Taken>; N] = std::array::from_fn(|_| names.clone().collect());
        let warming = usize::from(rounds > 1);
        for round in 0..rounds + warming {
            for (index, contender) in contenders.iter().enumerate() {
                let before = usage::busy()?;
                let Sample { values, work } = sample(contender).with_context(|| contender.name)?;
                let busy = usage::busy()? - before;
                if round < warming {
                    continue;
                }
                for (taken, value) in all.iter_mut().zip(values) {
                    let taken = &mut taken[index];
                    taken.values.push(value);
                    taken.busy += busy;
                    taken.work += work;
                }
            }
        }
        Ok(all.map(|contenders| Self { contenders }))
    }

    #[cfg(test)]
    /// As if contenders had yielded these values, with a second of CPU time for a thousand pieces of work.
    pub(crate) fn made_up(contenders: &[(&'static str, &[f64])]) -> Self {
        let taken = |(name, values): &(&'static str, &[f64])| Taken {
            name,
            values: values.to_vec(),
            busy: Duration::from_secs(1),
            work: 1000.0,
        };
        Self { contenders: contenders.iter().map(taken).collect() }
    }

    fn taken(&self, name: &str) -> Option<&Taken> {
        self.contenders.iter().find(|taken| taken.name == name)
    }

    fn of(&self, name: &str) -> Option<&[f64]> {
        self.taken(name).map(|taken| taken.values.as_slice())
    }

    /// A contender's figure.
    pub(crate) fn figure(&self, name: &str) -> Option<Figure> {
        self.of(name).map(Figure::of)
    }

    /// Microseconds of a contender's CPU time for a piece of work, if anybody counted.
    pub(crate) fn cpu(&self, name: &str) -> Option<f64> {
        self.taken(name)?.cpu()
    }

    /// A row: ours over a rival's; none if one of them was not measured.
    pub(crate) fn row(&self, report: &mut Report, name: &str, ours: &str, rival: &str, goal: Goal, unit: &str) {
        let (Some(our), Some(their)) = (self.of(ours), self.of(rival)) else { return };
        let detail = format!("{ours} {} {unit}, {rival} {} {unit}", shown(median(our)), shown(median(their)));
        report.row(name, goal, "", Figure::ratio(our, their), detail);
    }

    /// Into the written report, with the CPU time that a piece of work took: one `work`, if anybody counted.
    pub(crate) fn publish(
        &self,
        report: &mut Report,
        title: &str,
        unit: &'static str,
        better: Better,
        work: Option<&'static str>,
    ) {
        let contenders = self.contenders.iter().map(|taken| Standing {
            name: taken.name,
            figure: Figure::of(&taken.values),
            cpu: taken.cpu().zip(work),
        });
        let contenders = contenders.collect();
        report.comparison(Comparison { title: title.to_owned(), unit, better, contenders });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_contender_yielded_is_found_by_its_name_and_cpu_time_goes_by_the_work() -> Result<()> {
        let samples = Samples::made_up(&[("shunt", &[4.0, 6.0, 5.0]), ("flannel", &[2.0])]);
        let Figure { median, min, max, .. } = samples.figure("shunt").context("it took part")?;
        assert_eq!((median, min, max, samples.cpu("shunt")), (5.0, 4.0, 6.0, Some(1000.0)));
        assert!(samples.figure("veth").is_none() && samples.cpu("veth").is_none());
        // Nobody counted.
        assert_eq!(Taken { busy: Duration::from_secs(1), work: f64::NAN, ..Taken::default() }.cpu(), None);
        Ok(())
    }
}
