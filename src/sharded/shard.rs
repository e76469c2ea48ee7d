//! [`ClassShard`]: which classes are a rank's.

use std::ops::Range;

use crate::error::{Error, Result};

/// The classes of one rank: consecutive ones, as many as any other rank's or one more. Where there are more ranks than classes some have
/// none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassShard {
    classes: usize,
    rank: usize,
    size: usize,
}

impl ClassShard {
    /// Rank `rank`'s of `size`: ⌊C/P⌋ classes, and of the first C mod P ranks one more.
    ///
    /// # Errors
    /// A rank that is not below `size`.
    pub fn balanced(classes: usize, rank: usize, size: usize) -> Result<Self> {
        if rank >= size {
            return Err(Error::Sharded(format!("a rank is below the number of ranks: rank {rank} of {size}")));
        }
        Ok(Self { classes, rank, size })
    }

    /// The classes that are here: row i of the shard's W is the centre of class `range().start + i`.
    pub fn range(&self) -> Range<usize> {
        Self::range_of(self.classes, self.rank, self.size)
    }

    fn range_of(classes: usize, rank: usize, size: usize) -> Range<usize> {
        let (each, more) = (classes / size, classes % size);
        let start = rank * each + rank.min(more);
        start..start + each + usize::from(rank < more)
    }

    /// How many classes are here.
    pub fn len(&self) -> usize {
        self.range().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.range().is_empty()
    }

    /// C, of all shards.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Whose it is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// P, how many shards there are.
    pub fn size(&self) -> usize {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_all_classes_in_order_and_balanced() {
        for classes in [0, 1, 2, 5, 9, 100, 1072] {
            for size in 1..12 {
                let shards: Vec<_> =
                    (0..size).map(|rank| ClassShard::balanced(classes, rank, size).unwrap().range()).collect();
                let all: Vec<usize> = shards.iter().cloned().flatten().collect();
                assert_eq!(all, (0..classes).collect::<Vec<_>>(), "{classes} over {size}");
                let most = shards.iter().map(Range::len).max();
                let least = shards.iter().map(Range::len).min();
                assert!(most.unwrap() - least.unwrap() <= 1, "{classes} over {size}");
            }
        }
        assert!(ClassShard::balanced(3, 2, 2).is_err() && ClassShard::balanced(3, 0, 0).is_err());
    }
}
