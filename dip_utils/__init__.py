"""Deep image prior: an untrained network, fitted to one image.

The public names, in the order in which a notebook uses them. The method is in
`network` and `fitting`; `engine` makes it fast and safe; `views` shows it.
"""

from .engine.machine import choose_budget, choose_precision, describe_machine
from .images import crop, load_image, sample, save_image
from .corruption import (
    add_gaussian_noise,
    add_salt_and_pepper,
    compress_jpeg,
    permute_channels,
    shuffle_elements,
    shuffle_rows_and_columns,
    uniform_noise,
)
from .network import PARAMETRIZATION, RESTORATION, SkipNetwork, random_input
from .resampling import LanczosDownsampler, resize
from .fitting import Fit, fit, load_fit
from .stopping import HoldOut, choose_step, exponential_variance, windowed_variance
from .metrics import luma, mse, psnr, radial_power, share_explained, ssim, steps_to_reach
from .baselines import Pixels, denoise, total_variation, tune_denoiser
from .views.live import LivePlot
from .views.slider import browse
from .views.panels import OwnImagePanel, explore
from .views.figures import (
    compare,
    film_strip,
    plot_curves,
    plot_kernel,
    plot_spectra,
    plot_stopping,
    show_images,
)
from .views.tables import show_table, verdict
