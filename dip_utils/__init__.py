"""Deep image prior: an untrained network, fitted to one image."""

from .runtime import choose_budget, choose_device, choose_precision, describe_machine
from .images import crop, load_image, sample, save_image
from .corruption import (
    add_gaussian_noise,
    compress_jpeg,
    permute_channels,
    shuffle_elements,
    shuffle_rows_and_columns,
    uniform_noise,
)
from .resampling import LanczosDownsampler, lanczos, resize
from .network import SkipNetwork, random_input
from .runs import Fit, load_fit, verdict
from .stopping import ExponentialVariance, HoldOut, WindowedVariance
from .baselines import Pixels, denoise, total_variation, tune_denoiser
from .fitting import fit
from .widgets import LivePlot, browse
from .panels import OwnImagePanel, explore
from .figures import compare, film_strip, plot_curves, plot_kernel, plot_spectra, plot_stopping, show_images, show_table
from .metrics import luma, mse, psnr, radial_power, share_explained, ssim, steps_to_reach
