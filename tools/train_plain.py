"""Train a detector in a loop of one's own: copy this file and change the loop.

    python tools/train_plain.py configs/retinanet/retinanet_r18_fpn_shapes.py --resume
    torchrun --nproc-per-node 2 tools/train_plain.py CONFIG

Model, data, optimizer, schedule, precision, accumulation, evaluation and seeds are the config's: after N steps the
weights are those of tools/train.py to the bit. There is no Runner, and so no hook: no EMA, no pictures, no best file.
"""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
from detkit import config, engine
from detkit.engine import distributed as dist
from detkit.engine.parallel import MMDistributedDataParallel


def train(cfg, file, resume=False, log_every=50):
    device, rank, processes = engine.select_device(cfg.get("device")), dist.get_rank(), dist.get_world_size()
    cfg, seed = engine.auto_scale_cfg(cfg, processes), cfg.get("randomness", {}).get("seed", 0)
    say = print if rank == 0 else lambda text: None
    net = engine.build_initialized_model(cfg.model, seed).to(device)
    model = net if processes == 1 else MMDistributedDataParallel(net)
    data, val_data = (engine.build_dataloader(cfg[f"{kind}_dataloader"], seed) for kind in ("train", "val"))
    evaluator, stream = engine.build_evaluator(cfg.val_evaluator), engine.DataStream(data, seed)
    optimizer = engine.build_optim_wrapper(model, cfg.optim_wrapper)
    end, epoch, interval = engine.run_length(cfg.train_cfg, len(data))  # in iterations
    schedulers = engine.build_schedulers(cfg.get("param_scheduler"), optimizer, max_iters=end, epoch_length=epoch)
    step, sums, count, begin = 0, {}, 0, time.perf_counter()
    if resume and file.is_file():
        saved = engine.load_checkpoint_file(file)
        engine.load_weights(net, saved, strict=True)
        optimizer.load_state_dict(saved["optimizer"])
        engine.restore_schedulers(schedulers, saved["param_schedulers"], str(file))
        stream.position = engine.Position(*divmod(step := saved["meta"]["iter"], epoch))
    elif cfg.get("load_from"):  # weights alone: whatever iteration they are of, this run starts at its beginning
        say(engine.load_weights(net, engine.open_checkpoint(cfg.load_from)))
    optimizer.initialize_count_status(model, step, end)
    model.train()
    for batch in islice(stream, end - step):
        engine.seed_everything(engine.derive_seed(seed, "iter", step, *([rank] if rank else [])))
        losses = engine.train_step(model, batch, optimizer)
        step, count = step + 1, count + 1
        sums = {name: sums.get(name, 0) + torch.as_tensor(value, device=device) for name, value in losses.items()}
        for scheduler in schedulers:
            if not scheduler.by_epoch or step % epoch == 0:
                scheduler.step()
        due = step == end or (interval and step % interval == 0)
        if due or step % log_every == 0:  # until here nothing waits for the device
            means = {name: round(value.item() / count, 5) for name, value in dist.reduce_dict(sums).items()}
            say(f"iter {step}/{end}  {means}  {(time.perf_counter() - begin) / count:.3f} s")
            assert abs(means["loss"]) < float("inf"), f"a loss of the {count} iterations to {step} is not finite"
            sums, count, begin = {}, 0, time.perf_counter()
        if due:
            say(f"iter {step}/{end}  {engine.evaluate(model, val_data, evaluator)}")
            meta = {"iter": step, "seed": seed, "cfg": config.dump(cfg), "label_map": engine.label_map(data.dataset)}
            state = {"optimizer": optimizer.state_dict(), "param_schedulers": engine.schedulers_state(schedulers)}
            if rank == 0:
                engine.save_checkpoint_file({"meta": meta, "state_dict": net.state_dict(), **state}, file)
    return net


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--work-dir", default="work_dirs/plain", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--cfg-options", nargs="+", default=[])
    args = parser.parse_args()
    cfg = config.load(args.config, args.cfg_options)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    dist.init_distributed(dist.infer_launcher(), device_type=engine.select_device(cfg.get("device")).type)
    train(cfg, args.work_dir / "last.pth", args.resume)
    dist.destroy()
