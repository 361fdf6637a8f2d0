# As onecycle_24e.py, but starting at lr / 10 and increasing for two fifths of the epochs, and with less weight decay.
# For 8 devices with 4 scans each.
_base_ = "./onecycle_24e.py"
train_cfg = dict(max_epochs=20)
optim_wrapper = dict(optimizer=dict(weight_decay=0.03))
steps = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type="OneCycleLR", eta_max=0.006, total_steps=20, pct_start=0.4, div_factor=10, final_div_factor=1e4, **steps),
    dict(type="CosineAnnealingMomentum", eta_min=0.85, begin=0, end=8, T_max=8, **steps),
    dict(type="CosineAnnealingMomentum", eta_min=0.95, begin=8, end=20, T_max=12, **steps),
]
