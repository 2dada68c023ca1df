//! From 256 weights to the states of a tile.

use tensor::format::trellis::search::{self, CUT, Metric};
use tensor::format::trellis::{Codebook, LEN, Rate};

use crate::device::TileQueue;
use crate::error::QuantizeError;
use crate::level::Level;
use crate::step::Table;
use crate::trace::trace_period;
use crate::walk::Walk;

/// Finds the states for weights, at one rate and in one codebook. Has tables of up to 384 kB; to be made once and
/// shared among threads.
#[derive(Clone, Debug)]
pub struct Encoder {
    codebook: Codebook,
    metric: Metric,
    level: Level,
    /// For odd positions, then for even ones if they have another number of new bits.
    tables: Vec<Table>,
    /// Who finds tiles in its place.
    device: Option<TileQueue>,
}

/// The memory of one thread: about 2 MB of costs.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// The costs of all nodes before a step within a period.
    pub(crate) costs: Vec<u16>,
    /// After it.
    pub(crate) next: Vec<u16>,
    /// Before each period of steps, one after another, and after the last.
    pub(crate) kept: Vec<u16>,
}

impl Encoder {
    /// With the best instructions of this machine.
    pub fn new(codebook: Codebook, rate: Rate) -> Encoder {
        Encoder::with_level(codebook, rate, Level::detect())
    }

    /// With the instructions of a level, for comparing.
    ///
    /// # Panics
    /// If this machine doesn't have them.
    pub fn with_level(codebook: Codebook, rate: Rate, level: Level) -> Encoder {
        assert!(Level::available().contains(&level), "{level} on a machine with {:?}", Level::available());
        let metric = Metric::new(codebook, rate);
        let (odd, even) = (rate.new_bits(1), rate.new_bits(0));
        let table = |bits_in, bits_out| Table::new(metric.table(), level.width(), bits_in, bits_out);
        let mut tables = vec![table(odd, even)];
        if rate.is_half() {
            tables.push(table(even, odd));
        }
        Encoder { codebook, metric, level, tables, device: None }
    }

    /// Lets a device find the tiles of [`Encoder::encode_all`], if it does so at this rate.
    pub fn on(self, device: &TileQueue) -> Encoder {
        let device = device.supports(self.rate()).then(|| device.clone());
        Encoder { device, ..self }
    }

    /// Bits per weight.
    pub fn rate(&self) -> Rate {
        self.metric.rate()
    }

    /// What makes weights of states.
    pub fn codebook(&self) -> Codebook {
        self.codebook
    }

    /// The instructions that are used.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Memory for one thread.
    pub fn scratch(&self) -> Scratch {
        let nodes = |position| 1 << (16 - self.rate().new_bits(position));
        // Even positions have the fewer new bits, and so the more nodes.
        let costs = vec![0; nodes(0)];
        Scratch { next: costs.clone(), costs, kept: vec![0; (LEN / self.metric.period() + 1) * nodes(CUT)] }
    }

    /// The states for weights in the order of the ring ([`tile::RING`](tensor::format::trellis::tile::RING)), in the
    /// units of the codebook: what [`search::encode`] finds.
    ///
    /// Weights have to be finite: NaN is taken for 0, and what is beyond the codebook for its largest value. The result
    /// can always be packed, and its weights are those of the [`Codebook::table`].
    ///
    /// # Panics
    /// If `scratch` is from an encoder of another rate.
    pub fn encode(&self, scratch: &mut Scratch, weights: &[f32; LEN]) -> [u16; LEN] {
        let (rate, periods) = (self.rate(), LEN / self.metric.period());
        let nodes = 1 << (16 - rate.new_bits(CUT));
        assert_eq!(scratch.kept.len(), (periods + 1) * nodes, "scratch memory of another rate");
        let targets = weights.map(|weight| self.metric.target(weight));
        let mut states = [0; LEN];

        // From anywhere on the far side of the ring, to find the best node at the cut.
        scratch.kept[..nodes].fill(0);
        self.walk(&targets, CUT + LEN / 2, periods / 2, scratch);
        let costs = &scratch.kept[periods * nodes..];
        let end = (0..nodes).min_by_key(|&node| costs[node]).unwrap_or(0);
        let node = self.trace(&targets, CUT + LEN / 2, periods / 2, end, scratch, &mut states);

        // From that node, and back to it.
        scratch.kept[..nodes].fill(u16::MAX);
        scratch.kept[node] = 0;
        self.walk(&targets, CUT, 0, scratch);
        self.trace(&targets, CUT, 0, node, scratch, &mut states);
        search::close(rate, &mut states);
        states
    }

    /// As [`Encoder::encode`] for several tiles, with the device if there is one. `scratch` is only made if the
    /// processor needs it.
    ///
    /// # Errors
    /// A device that fails.
    ///
    /// # Panics
    /// If `scratch` is from an encoder of another rate.
    pub fn encode_all(
        &self,
        scratch: &mut Option<Scratch>,
        tiles: &[[f32; LEN]],
    ) -> Result<Vec<[u16; LEN]>, QuantizeError> {
        let Some(device) = &self.device else {
            let scratch = scratch.get_or_insert_with(|| self.scratch());
            return Ok(tiles.iter().map(|weights| self.encode(scratch, weights)).collect());
        };
        let targets = tiles.iter().map(|weights| weights.map(|weight| self.metric.target(weight)));
        let mut found = device.search(self.codebook, self.rate(), targets.collect())?;
        found.iter_mut().for_each(|states| search::close(self.rate(), states));
        Ok(found)
    }

    /// Goes around the ring and keeps the costs from the period `kept` on.
    fn walk(&self, targets: &[i16; LEN], start: usize, kept: usize, scratch: &mut Scratch) {
        match self.rate().half_bits() {
            2 => self.walk_at::<1, 2, 1, 2>(targets, start, kept, scratch),
            3 => self.walk_at::<2, 4, 1, 2>(targets, start, kept, scratch),
            4 => self.walk_at::<2, 4, 2, 4>(targets, start, kept, scratch),
            5 => self.walk_at::<3, 8, 2, 4>(targets, start, kept, scratch),
            6 => self.walk_at::<3, 8, 3, 8>(targets, start, kept, scratch),
            7 => self.walk_at::<4, 16, 3, 8>(targets, start, kept, scratch),
            8 => self.walk_at::<4, 16, 4, 16>(targets, start, kept, scratch),
            10 => self.walk_at::<5, 1, 5, 1>(targets, start, kept, scratch),
            12 => self.walk_at::<6, 1, 6, 1>(targets, start, kept, scratch),
            14 => self.walk_at::<7, 1, 7, 1>(targets, start, kept, scratch),
            16 => self.walk_at::<8, 1, 8, 1>(targets, start, kept, scratch),
            other => unreachable!("no rate has {other} half bits"),
        }
    }

    fn walk_at<const ODD: usize, const NEWS_ODD: usize, const EVEN: usize, const NEWS_EVEN: usize>(
        &self,
        targets: &[i16; LEN],
        start: usize,
        kept: usize,
        scratch: &mut Scratch,
    ) {
        let tables = [&self.tables[0], self.tables.last().expect("at least one table")];
        let period = self.metric.period();
        self.level.run(Walk::<ODD, NEWS_ODD, EVEN, NEWS_EVEN> { tables, targets, start, kept, period, scratch });
    }

    /// Goes back from the node after the last step to the one before the period `kept`, writes the states on the way
    /// and gives that node.
    fn trace(
        &self,
        targets: &[i16; LEN],
        start: usize,
        kept: usize,
        end: usize,
        scratch: &Scratch,
        states: &mut [u16; LEN],
    ) -> usize {
        let (period, nodes) = (self.metric.period(), 1 << (16 - self.rate().new_bits(CUT)));
        (kept..LEN / period).rev().fold(end, |node, index| {
            let costs = &scratch.kept[index * nodes..][..nodes];
            trace_period(&self.metric, targets, start + index * period, node, costs, states)
        })
    }
}
