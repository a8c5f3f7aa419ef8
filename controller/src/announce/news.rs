//! What an operator should find as Events: which ones a change of health or of problems is worth.
//!
//! A trouble that stands is told once, and one that comes and goes once in a while. All nodes refuse a bad object alike: a few of them,
//! found by a hash, tell of it.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use crate::problem::Problem;

/// How many nodes tell of an object that all of them refuse, on average; in a smaller cluster, all.
const TELLERS: u64 = 5;

/// A trouble that returns within this time is not told again.
const SILENCE: Duration = Duration::from_secs(600);

/// Events at once; and the time for each after that.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(10);

/// The most that an Event's note may have, in bytes (validation of events.k8s.io/v1).
const NOTE: usize = 1024;

/// The reason of an Event for a map without room.
pub const MAP_FULL: &str = "MapFull";

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// This node.
    OwnNode,
    /// An object of the cluster.
    Object {
        /// Its kind.
        kind: String,
        /// Empty if it is in none.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// What makes two Events the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What it is about.
    pub about: About,
    /// One word.
    pub reason: &'static str,
    /// Which of several of that reason: the field of an object.
    pub part: String,
}

/// An Event to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// What it is about, and what.
    pub key: Key,
    /// Whether it is trouble.
    pub is_warning: bool,
    /// For people.
    pub note: String,
}

/// What there is to tell of.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// This node's name.
    pub node: &'a str,
    /// How many Nodes there are.
    pub nodes: u64,
    /// Whether the dataplane is up.
    pub is_up: bool,
    /// Troubles of this node: a word for each, and what it is.
    pub troubles: &'a [(&'static str, &'a str)],
    /// What was refused.
    pub problems: &'a [Problem],
}

/// What was told.
#[derive(Debug)]
pub struct Chronicle {
    was_well: bool,
    told: BTreeMap<Key, Told>,
    budget: u32,
    refilled: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    at: Instant,
    stands: bool,
}

impl Chronicle {
    /// Of an agent that starts now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { was_well: false, told: BTreeMap::new(), budget: BURST, refilled: now }
    }

    /// What is worth an Event now. What the budget leaves no room for comes with a later call.
    pub fn follow(&mut self, present: &Present<'_>, now: Instant) -> Vec<News> {
        let steps = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        self.budget = u32::try_from(steps).unwrap_or(u32::MAX).saturating_add(self.budget).min(BURST);
        self.refilled += REFILL * u32::try_from(steps).unwrap_or(0);

        let wanted = wanted(present);
        for (key, told) in &mut self.told {
            told.stands = wanted.iter().any(|news| news.key == *key);
        }
        self.told.retain(|_, told| told.stands || now.saturating_duration_since(told.at) < SILENCE);
        let mut news = Vec::new();
        let is_well = present.is_up && present.troubles.is_empty();
        if is_well && !self.was_well {
            let note = "the dataplane is in force, and pods can be added".to_owned();
            news.extend(self.tell(News { key: own("DataplaneUp"), is_warning: false, note }, now));
        }
        self.was_well = is_well;
        for wanted in wanted {
            news.extend(self.tell(wanted, now));
        }
        news
    }

    fn tell(&mut self, news: News, now: Instant) -> Option<News> {
        if self.budget == 0 || self.told.contains_key(&news.key) {
            return None;
        }
        self.budget -= 1;
        self.told.insert(news.key.clone(), Told { at: now, stands: news.is_warning });
        Some(news)
    }

    /// One could not be written: it is due again with the next call, if it still stands.
    pub fn untold(&mut self, key: &Key) {
        self.told.remove(key);
    }
}

fn own(reason: &'static str) -> Key {
    Key { about: About::OwnNode, reason, part: String::new() }
}

fn wanted(present: &Present<'_>) -> Vec<News> {
    let troubles = present.troubles.iter().map(|(reason, text)| News { key: own(reason), is_warning: true, note: note(text) });
    let problems = present.problems.iter().filter_map(|problem| refused(present, problem));
    let mut news: Vec<News> = troubles.chain(full_maps(present.problems)).chain(problems).collect();
    news.sort_by(|a, b| a.key.cmp(&b.key));
    news.dedup_by(|a, b| a.key == b.key);
    news
}

/// One of this node for each map without room, and not one for each entry that found none.
fn full_maps(problems: &[Problem]) -> impl Iterator<Item = News> {
    let mut by_map: BTreeMap<&str, (&Problem, usize)> = BTreeMap::new();
    for (map, problem) in problems.iter().filter_map(|problem| Some((problem.map.as_deref()?, problem))) {
        by_map.entry(map).or_insert((problem, 0)).1 += 1;
    }
    by_map.into_iter().map(|(map, (first, count))| {
        let others = if count > 1 {
            format!(" ({} more find no room there; `shunt status` names them)", count - 1)
        } else {
            String::new()
        };
        let key = Key { about: About::OwnNode, reason: MAP_FULL, part: map.to_owned() };
        News { key, is_warning: true, note: note(&format!("{first}{others}")) }
    })
}

/// What is told of an object that was refused, be it for want of room: who looks after the object may not see our Node.
fn refused(present: &Present<'_>, problem: &Problem) -> Option<News> {
    let object = problem.object.as_deref()?;
    let about = match object_of(object) {
        Some(About::Object { kind, name, .. }) if kind == "Node" && name == present.node => About::OwnNode,
        Some(about) => about,
        // An entry of a map that is told of as a whole.
        None if problem.map.is_some() => return None,
        None => About::OwnNode,
    };
    if about != About::OwnNode && !is_teller(present.node, present.nodes, object) {
        return None;
    }
    let field = problem.field.as_deref().map(|field| format!("{field}: ")).unwrap_or_default();
    let key = Key { about, reason: "Refused", part: problem.field.clone().unwrap_or_default() };
    Some(News { key, is_warning: true, note: note(&format!("{field}{}", problem.message)) })
}

/// Of `Service default/web`; `None` if it is no object of Kubernetes.
fn object_of(text: &str) -> Option<About> {
    let (kind, name) = text.split_once(' ')?;
    let known = ["Node", "Service", "EndpointSlice", "Pod", "Namespace", "NetworkPolicy"].contains(&kind);
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    known.then(|| About::Object { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Whether this node is one of those that tell of an object.
fn is_teller(node: &str, nodes: u64, object: &str) -> bool {
    let mut hasher = DefaultHasher::new();
    (node, object).hash(&mut hasher);
    hasher.finish() % nodes.max(1) < TELLERS
}

fn note(text: &str) -> String {
    let end = (0..=text.len().min(NOTE)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(object: &str, field: &str) -> Problem {
        Problem {
            object: Some(object.to_owned()),
            field: Some(field.to_owned()),
            message: "is wrong".to_owned(),
            ..Problem::default()
        }
    }

    fn present<'a>(is_up: bool, troubles: &'a [(&'static str, &'a str)], problems: &'a [Problem]) -> Present<'a> {
        Present { node: "n1", nodes: 3, is_up, troubles, problems }
    }

    fn told(news: &[News]) -> Vec<(&About, &str, &str)> {
        news.iter().map(|news| (&news.key.about, news.key.reason, news.note.as_str())).collect()
    }

    #[test]
    fn up_trouble_and_up_again_are_told_once_each_while_they_last() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        let trouble = [("DataplaneDegraded", "no underlay")];
        assert!(chronicle.follow(&present(false, &[], &[]), start).is_empty());
        let news = chronicle.follow(&present(true, &[], &[]), start);
        assert!(told(&news)[0].1 == "DataplaneUp" && !news[0].is_warning, "{news:?}");
        for second in 0..3600 {
            let news = chronicle.follow(&present(true, &trouble, &[]), start + Duration::from_secs(second));
            assert_eq!(news.len(), usize::from(second == 0), "{second}: {news:?}");
        }
        let later = start + Duration::from_secs(3600);
        assert_eq!(told(&chronicle.follow(&present(true, &[], &[]), later))[0].1, "DataplaneUp");
    }

    #[test]
    fn a_trouble_that_comes_and_goes_is_told_once_in_ten_minutes() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        let trouble = [("PodRangeUnusable", "no podCIDR")];
        let mut count = 0;
        for second in 0..1800 {
            let troubles = if second % 2 == 0 { &trouble[..] } else { &[] };
            count += chronicle.follow(&present(false, troubles, &[]), start + Duration::from_secs(second)).len();
        }
        assert_eq!(count, 3);
    }

    #[test]
    fn problems_are_told_on_their_object() {
        let mut chronicle = Chronicle::new(Instant::now());
        let problems =
            [problem("Service default/web", "spec.ports"), problem("Node n1", "spec.podCIDR"), problem("this node", "address")];
        let news = chronicle.follow(&present(false, &[], &problems), Instant::now());
        let web = About::Object { kind: "Service".into(), namespace: "default".into(), name: "web".into() };
        assert_eq!(
            told(&news),
            [
                (&About::OwnNode, "Refused", "address: is wrong"),
                (&About::OwnNode, "Refused", "spec.podCIDR: is wrong"),
                (&web, "Refused", "spec.ports: is wrong"),
            ]
        );
        let key = news[2].key.clone();
        assert!(chronicle.follow(&present(false, &[], &problems), Instant::now()).is_empty());
        chronicle.untold(&key);
        assert_eq!(chronicle.follow(&present(false, &[], &problems), Instant::now()), news[2..]);
    }

    #[test]
    fn a_map_without_room_is_told_once_on_the_node_and_on_the_objects_that_found_none() {
        let no_room = |object: String, map: &str| Problem {
            object: Some(object),
            map: Some(map.to_owned()),
            message: "is full".to_owned(),
            ..Problem::default()
        };
        let mut problems: Vec<Problem> = (0..900).map(|i| no_room(format!("address 10.0.0.{i}"), "ADDRESSES")).collect();
        problems.push(no_room("Service default/web".into(), "SERVICES"));
        let mut chronicle = Chronicle::new(Instant::now());
        let news = chronicle.follow(&present(true, &[], &problems), Instant::now());
        let web = About::Object { kind: "Service".into(), namespace: "default".into(), name: "web".into() };
        assert_eq!(
            told(&news)[1..],
            [
                (
                    &About::OwnNode,
                    MAP_FULL,
                    "address 10.0.0.0: is full (899 more find no room there; `shunt status` names them)"
                ),
                (&About::OwnNode, MAP_FULL, "Service default/web: is full"),
                (&web, "Refused", "is full"),
            ]
        );
        assert!(chronicle.follow(&present(true, &[], &problems[1..]), Instant::now()).is_empty());
    }

    #[test]
    fn a_thousand_problems_are_told_bit_by_bit() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        let problems: Vec<Problem> = (0..1000).map(|i| problem(&format!("Service default/s{i}"), "spec")).collect();
        let mut follow =
            |seconds| chronicle.follow(&present(false, &[], &problems), start + Duration::from_secs(seconds)).len();
        assert_eq!((follow(0), follow(9), follow(10), follow(50), follow(10_000)), (20, 0, 1, 4, 20));
    }

    #[test]
    fn a_few_nodes_of_many_tell_of_an_object_and_all_of_few() {
        let tellers = |nodes: u64| (0..nodes).filter(|i| is_teller(&format!("node-{i}"), nodes, "Service default/web")).count();
        assert_eq!((tellers(1), tellers(5)), (1, 5));
        assert!((1..20).contains(&tellers(5000)), "{}", tellers(5000));
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        let text = note(&"ä".repeat(2000));
        assert!(text.len() <= NOTE && text.len() > NOTE - 4);
    }
}
