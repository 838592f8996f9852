//! How clips and pictures are cut, as it is typed: windows, tiles and their sizes.

use clap::{Args, ValueEnum};
use remote_vae_wire::TileSizes;

use crate::arguments::ClipArguments;

/// How clips and pictures are cut, with the sizes of tiles.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct CutArguments {
    #[command(flatten)]
    pub clips: ClipArguments,
    #[command(flatten)]
    pub tiles: TileArguments,
}

/// Tiles of models of pictures, by the names of diffusers' attributes.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct TileArguments {
    /// With --tiling on, models of pictures: side of a tile in pixels [default: as in diffusers]
    #[arg(long, value_name = "N", requires = "tiling")]
    pub tile_sample_min_size: Option<u32>,
    /// With --tiling on, models of pictures: side of a tile in latents [default: as in diffusers]
    #[arg(long, value_name = "N", requires = "tiling")]
    pub tile_latent_min_size: Option<u32>,
    /// With --tiling on, models of pictures: share of a side that overlaps the tile before, 0 to 0.5 [default: as in
    /// diffusers]
    #[arg(long, value_name = "SHARE", requires = "tiling")]
    pub tile_overlap_factor: Option<f64>,
}

impl From<TileArguments> for TileSizes {
    fn from(arguments: TileArguments) -> TileSizes {
        TileSizes {
            sample_min_size: arguments.tile_sample_min_size.map(|side| side as usize),
            latent_min_size: arguments.tile_latent_min_size.map(|side| side as usize),
            overlap_factor: arguments.tile_overlap_factor,
        }
    }
}

impl CutArguments {
    /// How clips and pictures are cut here.
    pub(crate) fn windows(&self) -> remote_vae_engine::Windows {
        let windows = self.clips.windows();
        remote_vae_engine::Windows { tiles: windows.tiles.map(|_| self.tiles.into()), ..windows }
    }

    /// How a server is asked to cut them.
    pub(crate) fn cuts(&self) -> remote_vae_client::Cuts {
        remote_vae_client::Cuts {
            windows: self.clips.windows.map(bool::from),
            tiling: self.clips.tiling.map(bool::from),
            tile: self.tiles.into(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TilingSwitch {
    On,
    Off,
    Diffusers,
}

impl From<TilingSwitch> for bool {
    fn from(switch: TilingSwitch) -> bool {
        switch != TilingSwitch::Off
    }
}
