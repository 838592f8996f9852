//! Which instruction set the kernels use: detected once, overridable, and only constructible when the CPU has it.

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::microkernel::{self, Tile};
use std::fmt;

/// An instruction tier that this CPU is known to support.
///
/// A value can only be made by [`Isa::detect`] and [`Isa::by_name`], which check the CPU; holding one is what makes
/// calls into the tier's functions sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(crate) Tier);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Generic,
}

/// A tier was asked for by name that does not exist or that this CPU lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsaError {
    asked: String,
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        write!(
            f,
            "instruction tier {:?} is not available on this CPU; available: {}",
            self.asked,
            names.join(", ")
        )
    }
}

impl std::error::Error for IsaError {}

impl Isa {
    /// The fastest tier of this CPU.
    pub fn detect() -> Isa {
        Self::available()[0]
    }

    /// The tiers that this CPU has, fastest first; the portable one is always there, last.
    pub fn available() -> Vec<Isa> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
            if vnni && amx::is_available() {
                tiers.push(Isa(Tier::Amx));
            }
            if vnni {
                tiers.push(Isa(Tier::Avx512Vnni));
            }
            if avx512 {
                tiers.push(Isa(Tier::Avx512));
            }
            if avx2 {
                tiers.push(Isa(Tier::Avx2));
            }
        }
        tiers.push(Isa(Tier::Generic));
        tiers
    }

    /// The tier called `name` (`amx`, `avx512vnni`, `avx512`, `avx2`, `generic`).
    ///
    /// # Errors
    /// The name is unknown or the CPU lacks the tier.
    pub fn by_name(name: &str) -> Result<Isa, IsaError> {
        Self::available()
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| IsaError { asked: name.into() })
    }

    /// `amx`, `avx512vnni`, `avx512`, `avx2` or `generic`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => "avx2",
            Tier::Generic => "generic",
        }
    }

    /// Whether the tier multiplies in tile registers, see [`crate::amx`].
    pub(crate) fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Tier::Amx {
            return true;
        }
        false
    }

    /// Output channels that one pass of the micro-kernel makes.
    pub(crate) fn lanes(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Amx => microkernel::Amx::LANES,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Vnni => microkernel::Avx512Vnni::LANES,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => microkernel::Avx512::LANES,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => microkernel::Avx2::LANES,
            Tier::Generic => microkernel::Generic::LANES,
        }
    }

    /// Pixels that one pass of the micro-kernel makes.
    pub(crate) fn pixels(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Amx => microkernel::Amx::PIXELS,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Vnni => microkernel::Avx512Vnni::PIXELS,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => microkernel::Avx512::PIXELS,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => microkernel::Avx2::PIXELS,
            Tier::Generic => microkernel::Generic::PIXELS,
        }
    }
}

/// Calls `$body::<T>($arguments)` compiled for the tier of `$isa`, `T` being its [`microkernel::Tile`];
/// `$body::<X: Bound>(…)` adds a type parameter of the caller's.
///
/// The body must be `unsafe` (it may use the tier's instructions) and `#[inline(always)]` all the way down, so that it
/// takes on the features of the wrapper.
macro_rules! dispatch {
    ($isa:expr, $body:ident$(::<$extra:ident: $bound:ident>)?($($name:ident: $kind:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,avx2,fma,f16c")]
        #[allow(unused_unsafe)] // some bodies are safe
        fn amx$(<$extra: $bound>)?($($name: $kind),*) {
            // SAFETY: this function's features are the tier's.
            unsafe { $body::<$crate::microkernel::Amx$(, $extra)?>($($name),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
        #[allow(unused_unsafe)] // some bodies are safe
        fn avx512vnni$(<$extra: $bound>)?($($name: $kind),*) {
            // SAFETY: this function's features are the tier's.
            unsafe { $body::<$crate::microkernel::Avx512Vnni$(, $extra)?>($($name),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
        #[allow(unused_unsafe)] // some bodies are safe
        fn avx512$(<$extra: $bound>)?($($name: $kind),*) {
            // SAFETY: this function's features are the tier's.
            unsafe { $body::<$crate::microkernel::Avx512$(, $extra)?>($($name),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        #[allow(unused_unsafe)] // some bodies are safe
        fn avx2$(<$extra: $bound>)?($($name: $kind),*) {
            // SAFETY: this function's features are the tier's.
            unsafe { $body::<$crate::microkernel::Avx2$(, $extra)?>($($name),*) }
        }
        match $isa.0 {
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Tier::Amx => {
                // SAFETY: an `Isa` of this tier exists only where the CPU has its features.
                unsafe { amx$(::<$extra>)?($($name),*) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Tier::Avx512Vnni => {
                // SAFETY: an `Isa` of this tier exists only where the CPU has its features.
                unsafe { avx512vnni$(::<$extra>)?($($name),*) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Tier::Avx512 => {
                // SAFETY: an `Isa` of this tier exists only where the CPU has its features.
                unsafe { avx512$(::<$extra>)?($($name),*) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Tier::Avx2 => {
                // SAFETY: an `Isa` of this tier exists only where the CPU has its features.
                unsafe { avx2$(::<$extra>)?($($name),*) }
            }
            #[allow(unused_unsafe)] // some bodies are safe
            $crate::isa::Tier::Generic => {
                // SAFETY: the portable tier uses no special instructions.
                unsafe { $body::<$crate::microkernel::Generic$(, $extra)?>($($name),*) }
            }
        }
    }};
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_tier_is_found_by_its_name() {
        for isa in Isa::available() {
            assert_eq!(Isa::by_name(isa.name()), Ok(isa));
        }
        assert_eq!(Isa::available().last().map(|isa| isa.name()), Some("generic"));
        for name in ["amx", "avx512vnni", "avx512", "avx2"] {
            if Isa::by_name(name).is_err() {
                eprintln!("this processor has no {name}: no test of this run reaches that tier");
            }
        }
    }

    #[test]
    fn an_unknown_tier_is_refused_with_the_ones_there_are() {
        let message = Isa::by_name("mmx").unwrap_err().to_string();
        assert!(message.contains("\"mmx\"") && message.contains("generic"), "{message}");
    }
}
