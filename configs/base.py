"""Every setting, with the values of the released recipe's last stage. The other configurations override some."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The released settings."""
    config = ConfigDict()
    config.seed = 0
    config.dtype = "float32"  # of the convolutions: "float32" or "bfloat16"
    config.model = ConfigDict({"backbone": "resnet50", "channels": 128, "scaled_promotion": False})
    config.model.attention = ("promotion", "rectification")  # or one of the two, or none (stage 1)
    config.model.light = False  # bilinear upsampling, shorter rectification branches
    config.model.context = False  # one more level, with a view of the entire image

    config.steps = 200_000
    config.batch_size = 2  # over all devices
    config.accumulate = 1  # parts of a batch whose gradients are averaged, to save memory
    config.average_decay = 0.0  # of an exponential average of the weights, used for prediction; 0 for none
    config.freeze_statistics = False  # BatchNorm normalises by its running statistics and does not update them
    config.reset_upsampling = False  # make transposed convolutions bilinear again after --init

    config.losses = ConfigDict()
    config.losses.structural = "region"  # over superpixels, or "ssim", or "none"
    config.losses.released = True  # the released double sigmoid and undetached error weight
    config.losses.max_regions = 256
    config.losses.iou = False  # add a soft intersection over union
    config.losses.superpixels = "slic"  # in the train step; or "grid", rectangles, or "files", of --superpixels DIR

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "adamw"
    config.optimizer.rate = 1e-3
    config.optimizer.group_rates = {"backbone": 1.0, "purificatory": 1.0, "promotion": 10.0, "rectification": 10.0}
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
    config.data.crop = 1.0  # the smallest area of a random crop, of 1
    config.data.jitter = 0.0  # the largest change of brightness, contrast and saturation, of 1
    config.data.sizes = ()  # sides of the images, one drawn per batch; none for data.size
    config.data.holdout = 0  # pairs, drawn by the seed, for validation instead of training

    config.loop = ConfigDict()  # may differ when a run is resumed
    config.loop.workers = 4  # threads that read ahead
    config.loop.log_every = 20
    config.loop.panel_every = 500  # 0 for no panels
    config.loop.checkpoint_every = 500
    config.loop.validate_every = 2_000
    config.loop.validate_first = False  # before the first step, too, so that the best checkpoint may be the start
    config.loop.patience = 0  # validations in a row without a lower error after which training ends; 0 for never
    config.loop.keep = 3
    config.loop.remat = False  # recompute activations in the backward pass: less memory, more time
    config.loop.timeout = 1_800  # seconds that a stage of a step may take before the run is ended; 0 for no limit
    return config
