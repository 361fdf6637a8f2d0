# As onecycle_24e.py, for small models on one device, with a constant first beta.
_base_ = "./onecycle_24e.py"
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.004))
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=0.004,
        total_steps=30,
        pct_start=0.2,
        div_factor=10,
        final_div_factor=1e3,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
