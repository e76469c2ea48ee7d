//! Sampled classes (partial FC): of a shard's classes those that the batch has, and others drawn to a rate.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;

use super::shard::ClassShard;
use crate::error::{Error, Result};

/// Which share of the classes takes part in a step.
///
/// The classes of the batch's labels always do; of the others as many are drawn, anew at every call, as make up the rate: none where the
/// labels alone are more. The softmax is over those that take part, and so are predictions and hard flags.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The share of a shard's classes, 0 < rate ≤ 1
    pub rate: f64,
    /// Where the draws begin: with the number of the call and the rank, all that they depend on
    pub seed: u64,
}

impl Sampling {
    /// That the rate is one.
    pub(super) fn check(self) -> Result<()> {
        if self.rate > 0.0 && self.rate <= 1.0 {
            return Ok(());
        }
        Err(Error::Sharded(format!("the rate of sampled classes must be in 0 < rate ≤ 1, it is {}", self.rate)))
    }

    /// Rows of the shard's W, rising: those of `targets`, classes of all shards, and drawn ones.
    pub(super) fn draw(self, shard: &ClassShard, targets: impl Iterator<Item = u32>, call: usize) -> Vec<u32> {
        let range = shard.range();
        let mut rows: Vec<u32> = targets
            .filter(|&class| range.contains(&(class as usize)))
            .map(|class| class - range.start as u32)
            .collect();
        rows.sort_unstable();
        rows.dedup();
        let wanted = (self.rate * range.len() as f64).ceil() as usize;
        let others = range.len() - rows.len();
        let drawn = wanted.saturating_sub(rows.len()).min(others);
        // Rank and call go into the seed as far from each other as the golden ratio takes them.
        let step = 0x9e37_79b9_7f4a_7c15u64;
        let seed = self.seed ^ step.wrapping_mul(((call as u64) << 20) + shard.rank() as u64 + 1);
        let mut places = index::sample(&mut StdRng::seed_from_u64(seed), others, drawn).into_vec();
        places.sort_unstable();
        // The k-th of the rows that are no target's.
        let mut before = 0;
        let drawn: Vec<u32> = places
            .into_iter()
            .map(|place| {
                while before < rows.len() && rows[before] as usize - before <= place {
                    before += 1;
                }
                (place + before) as u32
            })
            .collect();
        rows.extend(drawn);
        rows.sort_unstable();
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_targets_and_fill_up_to_the_rate() {
        for classes in [1, 7, 100, 1001] {
            for rate in [0.01, 0.3, 1.0] {
                for call in 0..20 {
                    for rank in 0..3 {
                        let shard = ClassShard::balanced(classes, rank, 3).unwrap();
                        let targets = [0, 5, 6, 6, 50, 700].into_iter().filter(|&class| (class as usize) < classes);
                        let rows = Sampling { rate, seed: 3 }.draw(&shard, targets.clone(), call);
                        assert!(rows.windows(2).all(|two| two[0] < two[1]), "rising: {rows:?}");
                        assert!(rows.iter().all(|&row| (row as usize) < shard.len()));
                        let start = shard.range().start as u32;
                        let mut own: Vec<u32> =
                            targets.filter(|&class| shard.range().contains(&(class as usize))).collect();
                        own.dedup();
                        assert!(own.iter().all(|class| rows.contains(&(class - start))));
                        let wanted = (rate * shard.len() as f64).ceil() as usize;
                        assert_eq!(rows.len(), wanted.max(own.len()), "{classes} {rate} {rank}");
                    }
                }
            }
        }
        let shard = ClassShard::balanced(1000, 0, 1).unwrap();
        let draw = |seed, call| Sampling { rate: 0.1, seed }.draw(&shard, std::iter::empty(), call);
        assert_eq!(draw(1, 1), draw(1, 1));
        assert!(draw(1, 1) != draw(1, 2) && draw(1, 1) != draw(2, 1));
        // Every class has its turn: of 400 draws of a tenth, 40 times, give or take 6 standard deviations.
        let mut times = vec![0; 1000];
        (0..400).for_each(|call| draw(7, call).into_iter().for_each(|row| times[row as usize] += 1));
        assert!(times.iter().all(|&times| (4..=76).contains(&times)), "{times:?}");
    }
}
