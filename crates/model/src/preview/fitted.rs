//! Factors fitted by this project. Written by `fit.py` beside this file; change that instead.

use super::PreviewFactors;

/// Stable Diffusion 1 and 2, from TAESD.
pub(super) const SD: PreviewFactors = PreviewFactors {
    factors: &[
        [0.3209, 0.2241, 0.3180],
        [0.1748, 0.3566, 0.0787],
        [-0.2336, 0.2243, 0.2005],
        [-0.2425, -0.2351, -0.6336],
    ],
    bias: [-0.0384, -0.0718, -0.1369],
};

/// Stable Diffusion XL, from TAESDXL.
pub(super) const SDXL: PreviewFactors = PreviewFactors {
    factors: &[
        [0.3705, 0.3805, 0.4384],
        [-0.2654, 0.0695, 0.0023],
        [0.0816, 0.2399, -0.1131],
        [-0.3155, -0.1800, -0.1623],
    ],
    bias: [0.0822, -0.0251, -0.0651],
};

/// FLUX.1, from TAEF1.
pub(super) const FLUX: PreviewFactors = PreviewFactors {
    factors: &[
        [-0.0393, 0.0350, 0.0846],
        [0.0339, 0.0581, 0.1118],
        [0.0688, -0.0622, -0.0277],
        [-0.0276, 0.0069, 0.0559],
        [0.0830, 0.0692, 0.0190],
        [-0.0154, 0.0190, -0.0050],
        [0.0598, 0.1234, 0.1020],
        [-0.0384, -0.0359, -0.0706],
        [-0.0454, 0.0035, 0.1314],
        [0.1212, 0.0965, -0.0503],
        [-0.0263, 0.0754, 0.0200],
        [0.0908, 0.0315, 0.0289],
        [0.0682, 0.0466, 0.0608],
        [-0.1408, -0.0021, -0.1218],
        [-0.0000, -0.0913, -0.0275],
        [-0.1150, -0.0699, -0.0438],
    ],
    bias: [0.0098, -0.0337, -0.0653],
};

/// The embedded model.
pub(super) const EMBEDDED: PreviewFactors = PreviewFactors {
    factors: &[
        [0.2602, 0.3142, 0.2736],
        [0.2442, -0.0289, -0.1827],
        [-0.1034, 0.1633, -0.1476],
        [0.0218, 0.0008, 0.0229],
    ],
    bias: [-0.0344, -0.0797, -0.1096],
};
