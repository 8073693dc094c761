//! A share: the part of one GPU that a container may use.

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;
use crate::units::{Area, Bytes, Quota, SmShare, Units};

/// SM share, quota (floor and ceiling) and memory of one container on one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Share {
    /// Part of the streaming multiprocessors.
    pub sm: SmShare,
    /// Guaranteed part of the time.
    pub floor: Quota,
    /// The most of the time it may get.
    pub ceiling: Quota,
    /// The most memory it may hold.
    pub memory: Bytes,
}

/// A share as it comes from outside, before its rules are checked.
#[derive(Deserialize)]
struct Unchecked {
    sm: SmShare,
    floor: Quota,
    ceiling: Quota,
    memory: Bytes,
}

impl TryFrom<Unchecked> for Share {
    type Error = Invalid;

    fn try_from(share: Unchecked) -> Result<Self, Invalid> {
        Self::new(share.sm, share.floor, share.ceiling, share.memory)
    }
}

impl Share {
    /// A share whose floor is above zero and at most its ceiling.
    pub fn new(sm: SmShare, floor: Quota, ceiling: Quota, memory: Bytes) -> Result<Self, Invalid> {
        if floor.is_zero() {
            return Err(Invalid::new("quota", floor, "more than 0 %"));
        }
        if floor > ceiling {
            return Err(Invalid::new("quota limit", ceiling, format!("at least the quota, {floor}")));
        }
        Ok(Self { sm, floor, ceiling, memory })
    }

    /// A whole GPU with `memory` bytes.
    pub fn whole_gpu(memory: Bytes) -> Self {
        Self { sm: SmShare::WHOLE, floor: Quota::WHOLE, ceiling: Quota::WHOLE, memory }
    }

    /// Cost of the share at its floor on a GPU with `gpu_memory`.
    pub fn dominant(&self, gpu_memory: Bytes) -> Area {
        self.dominant_at(self.floor, gpu_memory)
    }

    /// Cost of the share at quota `grant`: its dominant share `max(s·q, memory/GPU memory)`.
    pub fn dominant_at(&self, grant: Quota, gpu_memory: Bytes) -> Area {
        Area::of_time(self.sm, grant).max(Area::of_memory(self.memory, gpu_memory))
    }

    /// What the kubelet counts for this share.
    ///
    /// Since units cover the larger of time and memory, shares whose units sum to at most a GPU's fit in both.
    pub fn units(&self, per_gpu: Units, gpu_memory: Bytes) -> Units {
        self.dominant(gpu_memory).units(per_gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    #[test]
    fn a_floor_above_the_ceiling_is_refused() {
        let sm = SmShare::from_percent(30).unwrap();
        assert!(Share::new(sm, quota(50), quota(40), Bytes::gib(1)).is_err());
        assert!(Share::new(sm, quota(0), quota(40), Bytes::gib(1)).is_err());
        let json = r#"{"sm":30,"floor":500000,"ceiling":400000,"memory":0}"#;
        assert!(serde_json::from_str::<Share>(json).is_err());
    }

    #[test]
    fn cost_is_the_larger_of_time_and_memory() {
        let sm = SmShare::from_percent(40).unwrap();
        let share = Share::new(sm, quota(50), quota(100), Bytes::gib(4)).unwrap();
        assert_eq!(share.units(Units::PER_GPU, Bytes::gib(16)), Units(5));
        assert_eq!(share.units(Units::PER_GPU, Bytes::gib(80)), Units(4));
    }
}
