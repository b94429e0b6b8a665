"""Every setting, with the values of the released recipe's last stage. The other configurations say what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The released settings (purnet.md §4)."""
    config = ConfigDict()
    config.seed = 0
    config.dtype = "float32"  # what convolutions compute in: "float32" or "bfloat16"
    config.model = ConfigDict({"backbone": "resnet50", "channels": 128, "scaled_promotion": False})
    config.model.attention = ("promotion", "rectification")  # one of the two, or none, for comparisons and stage 1
    config.model.light = False  # bilinear upsampling, shorter rectification branches
    config.model.context = False  # one more level, that sees the whole image

    config.steps = 200_000
    config.batch_size = 2  # over all devices
    config.accumulate = 1  # parts that a device takes its share in, one after the other
    config.average_decay = 0.0  # of the exponential average of the weights that is predicted with; 0 for none
    config.freeze_statistics = False  # BatchNorm normalises by its running statistics, which stay as they are
    config.reset_upsampling = False  # make transposed convolutions bilinear again after --init

    config.losses = ConfigDict()
    config.losses.structural = "region"  # superpixels, or "ssim", or "none"
    config.losses.released = True  # the released double sigmoid and undetached error weight
    config.losses.max_regions = 256
    config.losses.iou = False  # add a soft intersection over union
    # "stored" superpixels lie beside the data set (computed once by scikit-image's SLIC) or in --superpixels DIR;
    # "slic" makes them in the train step, "grid" takes rectangles, and neither reads or stores any.
    config.losses.superpixels = "stored"

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "adamw"
    config.optimizer.rate = 1e-3
    config.optimizer.group_rates = {
        "backbone": 1.0,
        "purificatory": 1.0,
        "promotion": 10.0,
        "rectification": 10.0,
    }
    config.optimizer.decaying_groups = ("backbone",)  # the others stay constant
    config.optimizer.decay = "polynomial"  # by (1 − step/steps)^power, or "cosine"
    config.optimizer.power = 0.9
    config.optimizer.warmup_steps = 0
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.clip_norm = 0.0  # bound on the gradient's global norm; 0 for none

    config.data = ConfigDict()
    config.data.size = 320
    config.data.flip = 0.5
    config.data.rotate = 10.0  # degrees to either side
    config.data.crop = 1.0  # the least share of the area that a random crop keeps
    config.data.jitter = 0.0  # the most that brightness, contrast and saturation change, of 1
    config.data.sizes = ()  # sides that batches are drawn from; none for data.size always

    config.data.holdout = 0  # training pairs, drawn by the seed, that are validated on and not trained on

    config.loop = ConfigDict()  # may differ when a run is resumed
    config.loop.workers = 4  # threads that read ahead
    config.loop.log_every = 20
    config.loop.panel_every = 500  # 0 for no panels
    config.loop.checkpoint_every = 500
    config.loop.validate_every = 2_000
    config.loop.validate_first = False  # before the first step too: then the best checkpoint may be the start
    config.loop.patience = 0  # validations without a lower error that end training; 0 for never
    config.loop.keep = 3
    config.loop.remat = False  # compute anew in the backward pass what would be kept for it: less memory, more work
    config.loop.timeout = 1_800  # seconds after which a stage of a step that does not end ends the run; 0 for never
    return config
