use tensor::{Sampling, philox};

use super::*;
use crate::lab::Lab;
use crate::memory::Slice;

/// Random numbers, the same in every run.
struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    fn new(seed: u64) -> Random {
        Random { seed, drawn: 0 }
    }

    fn bits(&mut self) -> u64 {
        self.drawn += 1;
        philox::bits(self.seed, self.drawn)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.bits() % count as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// About a normal distribution of deviation 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    fn sampling(&mut self) -> Sampling {
        Sampling {
            temperature: self.one_of(&[0.0, 0.1, 0.7, 1.0, 1.0, 1.5, 5.0, 100.0]),
            top_k: self.one_of(&[0, 0, 1, 2, 5, 40, 64, 64, 1000, 1024, 1025, 1500, 2048, 3000, 300_000, usize::MAX]),
            top_p: self.one_of(&[1e-9, 0.01, 0.3, 0.5, 0.95, 0.95, 0.999_999, 0.999_999_94, 1.0, 1.0, 1.0]),
            min_p: self.one_of(&[0.0, 0.0, 0.0, 1e-6, 0.05, 0.3, 1.0]),
            repetition_penalty: self.one_of(&[1.0, 1.0, 1.3, 0.8, 1e3, 1e-30]),
            seed: self.bits(),
        }
    }

    /// Logits of one of several kinds.
    fn logits(&mut self, vocabulary: usize) -> Vec<f32> {
        let scale = self.one_of(&[0.01, 0.3, 1.0, 3.0, 3.0, 10.0]);
        let distinct = 1 + self.below(6);
        let strange =
            [f32::NAN, -f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, 1e-40, -1e-40, 1e-31, -8e-31, -3e38, f32::MIN];
        let kind = self.below(12);
        let mut logits: Vec<f32> = (0..vocabulary)
            .map(|id| match kind {
                0 => self.below(distinct) as f32,
                1 => scale * self.below(distinct) as f32 - 3.0,
                2 if self.below(3) == 0 => self.one_of(&strange),
                3 if self.below(50) == 0 => self.one_of(&strange),
                4 => self.one_of(&strange),
                5 => (scale * self.normal() * 8.0).round() / 8.0,
                // The best ones beside each other.
                6 if id < 3 * vocabulary / 7 && id > 2 * vocabulary / 7 => 4.0 * scale + self.normal() * 0.1,
                7 => f32::NAN,
                8 => f32::NEG_INFINITY,
                9 if id > vocabulary / 2 => f32::NEG_INFINITY,
                10 if self.below(4) == 0 => scale * self.below(distinct) as f32,
                _ => scale * self.normal(),
            })
            .collect();
        let special = self.below(vocabulary);
        match self.below(20) {
            0 => logits[special] = f32::INFINITY,
            1 => logits[special] = 3e38,
            2 => logits[special] = 30.0,
            _ => {}
        }
        logits
    }
}

/// A text that goes on for some passes.
struct Text {
    sampling: Sampling,
    occurred: Vec<u32>,
    token: u32,
    position: u32,
    sequence: u32,
    /// Of each pass.
    logits: Vec<Vec<f32>>,
}

impl Text {
    fn new(random: &mut Random, vocabulary: usize, passes: usize, sampling: Sampling) -> Text {
        let count = random.one_of(&[0, 1, 5, vocabulary / 2]);
        let mut occurred: Vec<u32> = (0..count).map(|_| random.below(vocabulary) as u32).collect();
        occurred.sort_unstable();
        occurred.dedup();
        Text {
            sampling,
            occurred,
            token: random.below(vocabulary) as u32,
            position: random.below(100_000) as u32,
            sequence: random.below(9) as u32,
            logits: (0..passes).map(|_| random.logits(vocabulary)).collect(),
        }
    }

    fn random(random: &mut Random, vocabulary: usize, passes: usize) -> Text {
        let sampling = random.sampling();
        Text::new(random, vocabulary, passes, sampling)
    }

    fn bitmap(&self, vocabulary: usize) -> Vec<u32> {
        let mut words = vec![0; occurred_words(vocabulary)];
        self.occurred.iter().for_each(|&token| words[token as usize / 32] |= 1 << (token % 32));
        words
    }

    /// Chooses by the definition; the result as in a slot.
    fn choose(&mut self, pass: usize) -> u32 {
        let position = u64::from(self.position) + 1;
        let token = tensor::reference::sample(&self.logits[pass], &self.sampling, &self.occurred, position);
        self.position += 1;
        if let Some(token) = token {
            self.token = token;
            if self.sampling.repetition_penalty != 1.0 && !self.occurred.contains(&token) {
                self.occurred.push(token);
            }
        }
        token.unwrap_or(NO_TOKEN)
    }
}

/// A sampler with the memory of its rows.
struct Bench {
    lab: Lab,
    features: Features,
    sampler: Sampler,
    scratch: (Slice, usize),
    vocabulary: usize,
}

impl Bench {
    fn new(lab: Lab, rows: usize, vocabulary: usize) -> Bench {
        let features = lab.features().clone();
        Bench::of(lab, features, rows, vocabulary)
    }

    /// For a device that can less.
    fn of(mut lab: Lab, features: Features, rows: usize, vocabulary: usize) -> Bench {
        let (bytes, zeroed) = Sampler::scratch_bytes(&features, rows, vocabulary);
        let mut content = vec![0xa5; bytes];
        content[..zeroed].fill(0);
        let slice = lab.upload(&content).unwrap();
        let sampler = Sampler::new(&features, slice.address, rows, vocabulary);
        Bench { lab, features, sampler, scratch: (slice, zeroed), vocabulary }
    }

    /// Runs all passes of the texts on the device and by the definition, and compares everything that is written.
    fn check(&mut self, texts: &mut [Text], what: &str) {
        let lab = &mut self.lab;
        let settings: Vec<Settings> = texts.iter().map(|text| Settings::new(&text.sampling)).collect();
        let settings = lab.upload(bytemuck::cast_slice(&settings)).unwrap();
        let first: Vec<[u32; 4]> = texts.iter().map(|text| [text.token, text.position, text.sequence, 0]).collect();
        let tokens = lab.upload(bytemuck::cast_slice(&first)).unwrap();
        let bits: Vec<u32> = texts.iter().flat_map(|text| text.bitmap(self.vocabulary)).collect();
        let occurred = lab.upload(bytemuck::cast_slice(&bits)).unwrap();
        let passes = texts[0].logits.len();
        let results = lab.upload(&vec![0; 4 * texts.len() * passes]).unwrap();
        let plan = SamplePlan::of(texts.iter().map(|text| &text.sampling));
        let mut dispatches = Vec::new();
        for pass in 0..passes {
            let rows = texts.iter().flat_map(|text| {
                let padding = crate::kernel::pitch(self.vocabulary) - self.vocabulary;
                // The kernels never look at the padding.
                text.logits[pass].iter().copied().chain(std::iter::repeat_n(1e9, padding))
            });
            let logits = lab.upload(bytemuck::cast_slice(&rows.collect::<Vec<f32>>())).unwrap();
            let rows = Rows {
                settings: settings.address,
                tokens: tokens.address,
                occurred: occurred.address,
                results: results.address + (4 * texts.len() * pass) as u64,
            };
            let view = View { address: logits.address, width: self.vocabulary };
            dispatches.extend(self.sampler.dispatches(&self.features, plan, view, &rows, texts.len()));
        }
        lab.run(&dispatches).unwrap();

        let found = lab.download(results, 4 * texts.len() * passes).unwrap();
        let found: &[u32] = bytemuck::cast_slice(&found);
        for pass in 0..passes {
            for (row, text) in texts.iter_mut().enumerate() {
                let (expected, found) = (text.choose(pass), found[pass * first.len() + row]);
                assert_eq!(found, expected, "{what}, pass {pass}, row {row}: {:?}", text.sampling);
            }
        }
        let next: Vec<[u32; 4]> = texts.iter().map(|text| [text.token, text.position, text.sequence, 0]).collect();
        let found = lab.download(tokens, 16 * texts.len()).unwrap();
        assert_eq!(bytemuck::cast_slice::<u8, [u32; 4]>(&found), next, "{what}");
        let bits: Vec<u32> = texts.iter().flat_map(|text| text.bitmap(self.vocabulary)).collect();
        let found = lab.download(occurred, 4 * bits.len()).unwrap();
        assert_eq!(bytemuck::cast_slice::<u8, u32>(&found), bits, "{what}");
        let zeroed = lab.download(self.scratch.0, self.scratch.1).unwrap();
        let counters = bytemuck::cast_slice::<u8, u32>(&zeroed).chunks_exact(6).take(texts.len());
        assert!(counters.into_iter().all(|state| state[..3] == [0; 3]), "{what}: counters are not set back");
    }
}

/// Random texts of random settings.
fn check_random(vocabulary: usize, rows: usize, passes: usize, runs: usize) {
    let Some(lab) = Lab::for_tests() else { return };
    let mut bench = Bench::new(lab, rows, vocabulary);
    let mut random = Random::new(vocabulary as u64);
    for run in 0..runs {
        // Also fewer rows than there is memory for.
        let count = if run % 3 == 2 { 1 + random.below(rows) } else { rows };
        let mut texts: Vec<Text> = (0..count).map(|_| Text::random(&mut random, vocabulary, passes)).collect();
        bench.check(&mut texts, &format!("vocabulary {vocabulary}, run {run}"));
    }
}

#[test]
fn a_tiny_vocabulary_is_sampled_as_defined() {
    check_random(7, 40, 4, 24);
}

#[test]
fn a_small_vocabulary_is_sampled_as_defined() {
    check_random(33, 40, 4, 24);
}

#[test]
fn a_medium_vocabulary_is_sampled_as_defined() {
    check_random(2000, 40, 2, 12);
}

#[test]
fn a_vocabulary_beyond_the_candidates_is_sampled_as_defined() {
    check_random(9003, 8, 2, 24);
}

#[test]
fn smaller_workgroups_sample_as_defined() {
    let Some(lab) = Lab::for_tests() else { return };
    let features = Features { workgroup_max: 2 * lab.features().subgroup.max(32), ..lab.features().clone() };
    let (rows, vocabulary) = (8, 5000);
    let mut bench = Bench::of(lab, features, rows, vocabulary);
    let mut random = Random::new(64);
    for run in 0..12 {
        let mut texts: Vec<Text> = (0..rows).map(|_| Text::random(&mut random, vocabulary, 2)).collect();
        bench.check(&mut texts, &format!("run {run}"));
    }
}

/// As large as a model's: the settings that such a vocabulary decides on.
#[test]
fn a_large_vocabulary_is_sampled_as_defined() {
    const VOCABULARY: usize = 262_208;
    let Some(lab) = Lab::for_tests() else { return };
    let mut random = Random::new(1);
    let base = Sampling { seed: 7, ..Sampling::default() };
    let settings = [
        base,
        Sampling { repetition_penalty: 1.3, ..base },
        Sampling { top_k: 0, ..base },
        Sampling { top_k: 0, top_p: 1.0, min_p: 0.05, ..base },
        Sampling { top_k: 0, top_p: 1.0, ..base },
        // More than the list of candidates holds.
        Sampling { top_k: 5000, ..base },
        Sampling { top_k: 0, top_p: 0.95, temperature: 10.0, ..base },
        Sampling::greedy(),
    ];
    let mut bench = Bench::new(lab, settings.len(), VOCABULARY);
    let mut texts: Vec<Text> = settings
        .into_iter()
        .map(|sampling| {
            let mut text = Text::new(&mut random, VOCABULARY, 0, sampling);
            // A normal distribution with a few that stand out, and one with many ties.
            let row = |_| if random.below(4000) == 0 { 6.0 + 4.0 * random.normal() } else { 2.0 * random.normal() };
            text.logits.push((0..VOCABULARY).map(row).collect());
            text.logits.push((0..VOCABULARY).map(|_| random.below(5) as f32).collect());
            text
        })
        .collect();
    bench.check(&mut texts, "a large vocabulary");
}

/// Of equal logits the first are kept, also where better ones lie between those that are kept and those that are not.
#[test]
fn the_first_of_equal_logits_are_kept() {
    const VOCABULARY: usize = 9003;
    let Some(lab) = Lab::for_tests() else { return };
    let mut bench = Bench::new(lab, 40, VOCABULARY);
    // The last one that is kept has number 2,980 or 3,000.
    let logits: Vec<f32> = (0..VOCABULARY).map(|id| if (3010..3020).contains(&id) { 6.0 } else { 0.0 }).collect();
    let text = |row: u64| Text {
        sampling: Sampling { top_k: 2991 + 20 * (row as usize % 2), top_p: 1.0, seed: row, ..Sampling::default() },
        occurred: Vec::new(),
        token: 0,
        position: 0,
        sequence: 0,
        logits: vec![logits.clone(); 4],
    };
    bench.check(&mut (0..40).map(text).collect::<Vec<_>>(), "ties");
}

/// Each draw of a text has numbers of its own, and the shares of the tokens are their probabilities.
#[test]
fn tokens_are_as_frequent_as_probable() {
    let Some(lab) = Lab::for_tests() else { return };
    let (rows, passes) = (40, 50);
    let mut bench = Bench::new(lab, rows, 7);
    let sampling = |seed| Sampling { top_k: 0, top_p: 1.0, seed, ..Sampling::default() };
    let logits: Vec<f32> = (0..7).map(|id| (id as f32 / 21.0 + 1e-9).ln()).collect();
    let mut texts: Vec<Text> = (0..rows)
        .map(|row| Text {
            sampling: sampling(row as u64 % 4),
            occurred: Vec::new(),
            token: 0,
            position: (row * passes) as u32,
            sequence: 0,
            logits: vec![logits.clone(); passes],
        })
        .collect();
    bench.check(&mut texts, "frequencies");
    let mut counts = [0; 7];
    for text in &mut texts {
        text.position -= passes as u32;
        (0..passes).for_each(|pass| counts[text.choose(pass) as usize] += 1);
    }
    // 2,000 draws: 4.5 standard deviations of the most uncertain share are 100.
    for (id, count) in counts.into_iter().enumerate() {
        let expected = (rows * passes * id) as f64 / 21.0;
        assert!((f64::from(count) - expected).abs() < 100.0, "{counts:?}");
    }
}

#[test]
fn the_plan_follows_from_the_settings() {
    let (greedy, random) = (Sampling::greedy(), Sampling::default());
    assert_eq!(SamplePlan::of([&greedy, &greedy]), SamplePlan::Greedy);
    assert_eq!(SamplePlan::of([&greedy, &random]), SamplePlan::Any);
}

#[test]
fn settings_are_flags_and_constants() {
    let settings = Settings::new(&Sampling { top_k: usize::MAX, seed: 3 << 32 | 5, ..Sampling::default() });
    assert_eq!((settings.flags, settings.top_k, settings.seed), (TOP_P, 0, [5, 3]));
    let settings = Settings::new(&Sampling { top_p: 1.0, repetition_penalty: 2.0, ..Sampling::greedy() });
    assert_eq!((settings.flags, settings.top_k), (GREEDY | PENALIZES, 64));
    assert_eq!((settings.penalty, settings.penalty_inverse), (2.0, 0.5));
}
