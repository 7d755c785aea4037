"""Train transformer and text encoder together on a pool of encoded clips."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from optim import Average, Muon, split_parameters
from parts import FLOW_SHIFT, PIXELS, build_tokenizer, encode_moments, pad_text
from ranks import Ranks
from scenes import render, sample_scenes
from settings import Grid, Phase, Settings
from torch import Tensor
from transformers import UMT5EncoderModel

CAPTION_TOKENS = 48


class Pool:
    """Encoded clips of one grid on the GPU, replaced little by little."""

    def __init__(self, grid: Grid, vae: AutoencoderKLWan, device: str, seed: int) -> None:
        self.grid, self.vae, self.device = grid, vae, device
        self.rng = torch.Generator().manual_seed(seed)
        self.tokenizer = build_tokenizer()
        shape = (LATENTS := vae.config.z_dim, (grid.frames - 1) // 4 + 1)
        self.latents = torch.empty(
            grid.pool,
            *shape,
            grid.height // PIXELS,
            grid.width // PIXELS,
            dtype=torch.bfloat16,
            device=device,
        )
        self.ids = torch.zeros(grid.pool, CAPTION_TOKENS, dtype=torch.long, device=device)
        view = (1, LATENTS, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean, device=device).view(view)
        self.std = torch.tensor(vae.config.latents_std, device=device).view(view)
        self.filled, self.next, self.owed = 0, 0, 0

    @torch.no_grad()
    def add(self, n: int) -> None:
        """Render and encode ``n`` new clips over the oldest ones."""
        scenes, captions = sample_scenes(n, self.rng)
        g = self.grid
        video = render(
            scenes.to(torch.device(self.device)), frames=g.frames, height=g.height, width=g.width
        ).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(self.device, torch.bfloat16):
            mean = encode_moments(self.vae, video)[0].float()
        ids = self.tokenizer(
            [str(c) for c in captions],
            padding="max_length",
            max_length=CAPTION_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        rows = (torch.arange(n) + self.next) % g.pool
        rows = rows.to(self.device)
        self.latents[rows] = ((mean - self.mean) / self.std).bfloat16()
        self.ids[rows] = ids.to(self.device, non_blocking=True)
        self.next = (self.next + n) % g.pool
        self.filled = min(g.pool, self.filled + n)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draw a batch after topping the pool up."""
        while self.filled < min(self.grid.pool, 2 * self.grid.batch):
            self.add(self.grid.encode)
        # A young pool grows by whole chunks until it is full.
        young = self.filled < self.grid.pool
        self.owed += self.grid.encode if young else self.grid.fresh
        while self.owed >= self.grid.encode:
            self.add(self.grid.encode)
            self.owed -= self.grid.encode
        rows = torch.randint(self.filled, (self.grid.batch,), generator=self.rng).to(self.device)
        return self.latents[rows], self.ids[rows]


def draw_sigmas(n: int, device: str) -> Tensor:
    """Noise levels in (0, 1): logit-normal, shifted as in sampling, with a uniform tenth."""
    u = torch.sigmoid(torch.randn(n, device=device))
    u = torch.where(torch.rand(n, device=device) < 0.1, torch.rand(n, device=device), u)
    return FLOW_SHIFT * u / (1 + (FLOW_SHIFT - 1) * u)


@dataclass
class Trainer:
    """Model, optimisers and progress of one run."""

    settings: Settings
    transformer: WanTransformer3DModel
    text_encoder: UMT5EncoderModel
    vae: AutoencoderKLWan
    ranks: Ranks
    steps: int = 0
    seconds: float = 0.0
    history: list[tuple[float, int, str, float, float]] = field(default_factory=list)
    pools: dict[str, Pool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = self.ranks.device
        modules = {"transformer": self.transformer, "text_encoder": self.text_encoder}
        self.average = Average(modules, self.settings.ema)
        matrices, others = split_parameters(self.transformer, self.text_encoder)
        self.parameters = matrices + others
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=self.settings.lr),
            torch.optim.AdamW(
                others,
                lr=self.settings.lr,
                betas=(0.9, 0.98),
                weight_decay=0.0,
                fused=self.device == "cuda",
            ),
        ]

    def pool(self, name: str) -> Pool:
        """Make the grid's pool when it is first needed; a resumed run sees new clips."""
        if name not in self.pools:
            seed = self.settings.seed + 1000 * (self.steps + 1) + len(self.pools)
            seed += 100_003 * self.ranks.rank
            self.pools[name] = Pool(self.settings.grid(name), self.vae, self.device, seed)
        return self.pools[name]

    def loss(self, latents: Tensor, ids: Tensor) -> Tensor:
        """Flow-matching loss: predict noise - latents."""
        n = latents.shape[0]
        drop = torch.rand(n, 1, device=self.device) < self.settings.caption_dropout
        empty = torch.zeros_like(ids)
        empty[:, 0] = 1  # </s> alone, as the tokenizer gives for ""
        ids = torch.where(drop, empty, ids)
        mask = (ids != 0).long()
        sigma = draw_sigmas(n, self.device)
        level = sigma.view(-1, 1, 1, 1, 1)
        clean = latents.float()
        noise = torch.randn_like(clean)
        noisy = clean * (1 - level) + noise * level
        with torch.autocast(self.device, torch.bfloat16):
            states = self.text_encoder(ids, mask).last_hidden_state
            text = pad_text(states, mask).bfloat16()
            out = self.transformer(noisy.bfloat16(), sigma * 1000.0, text, return_dict=False)[0]
        return (out.float() - (noise - clean)).pow(2).mean()

    def step(self, name: str, rate: float) -> Tensor:
        """Do one optimiser step on a batch of grid ``name``; returns the loss, not synced."""
        latents, ids = self.pool(name).batch()
        # AdamW's share (embeddings, biases, modulation) likes smaller steps than Muon's.
        for optimiser, factor in zip(self.optimisers, (1.0, 0.5), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        loss = self.loss(latents, ids)
        loss.backward()
        self.ranks.average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.average.update()
        self.steps += 1
        return loss.detach()

    def train(
        self,
        phases: tuple[Phase, ...],
        seconds: float,
        save: Callable[["Trainer"], None],
        *,
        save_every: float = 60.0,
    ) -> None:
        """Train for ``seconds`` of wall clock, saving now and then."""
        # warm-up counts from the run's first step: the optimiser may be fresh
        start, first, saved = time.monotonic(), self.steps, time.monotonic()
        before = self.seconds
        clock = _Shares(random.Random(self.settings.seed + self.steps))
        watch = _Stopwatch(self.device)
        names = [grid.name for grid in self.settings.grids]
        while (spent := self._agree_on_time(start)) < seconds:
            part = spent / seconds
            chosen = clock.choose(_phase_at(phases, part).grids)
            name = names[self.ranks.agree(names.index(chosen))]
            rate = self.settings.lr * min(1.0, (self.steps - first + 1) / 150)
            fall = self.settings.decay_from
            if part > fall:
                rate *= max(0.02, (1.0 - part) / (1.0 - fall))
            begun = watch.start()
            loss = self.step(name, rate)
            timed = watch.stop(name, begun)
            if timed is not None:
                clock.spend(*timed)
            now = time.monotonic()
            self.seconds = before + now - start
            if (self.steps - first) in (1, 5, 20) or self.steps % 25 == 0:
                self._report(name, loss.item(), rate, timed[1] if timed else 0.0)
            if now - saved > save_every:
                save(self)
                saved = time.monotonic()

    def _agree_on_time(self, start: float) -> float:
        """Seconds since ``start`` by rank 0's clock, so that all ranks stop together."""
        return self.ranks.agree(round(1e3 * (time.monotonic() - start))) / 1e3

    def _report(self, name: str, value: float, rate: float, step_seconds: float) -> None:
        if not math.isfinite(value):
            raise RuntimeError("the transformer's loss is not finite")
        row = (round(self.seconds, 1), self.steps, name, round(value, 5), round(step_seconds, 4))
        self.history.append(row)
        if not self.ranks.first:
            return
        print(
            f"dit {row[0]:6.1f}s step {row[1]:5d} {name:9s} loss {value:.4f} lr {rate:.1e} "
            f"step {step_seconds:.3f}s",
            flush=True,
        )

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, pools apart."""
        return {
            "transformer": self.transformer.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "shadow": self.average.shadow,
            "updates": self.average.updates,
            "steps": self.steps,
            "seconds": self.seconds,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.transformer.load_state_dict(state["transformer"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        for name, tensor in state["shadow"].items():
            self.average.shadow[name].copy_(tensor)
        self.average.updates = state["updates"]
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.history = [tuple(row) for row in state["history"]]


class _Shares:
    """Choose grids so that each gets its share of time, whatever a step of it costs."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.asked: dict[str, int] = {}
        self.cost: dict[str, float] = {}

    def choose(self, shares: dict[str, float]) -> str:
        # The first steps on a grid also compile and fill its pool: only later ones count.
        young = [name for name in shares if self.asked.get(name, 0) < 4]
        names = list(shares)
        weights = [shares[name] / self.cost.get(name, 1.0) for name in names]
        name = young[0] if young else self.rng.choices(names, weights)[0]
        self.asked[name] = self.asked.get(name, 0) + 1
        return name

    def spend(self, name: str, seconds: float) -> None:
        old = self.cost.get(name, seconds)
        self.cost[name] = min(seconds, 0.8 * old + 0.2 * seconds)


class _Stopwatch:
    """Times steps on the device while the host stays one step ahead."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.open: tuple[str, Any, Any] | None = None

    def start(self) -> Any:
        if not self.cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self, name: str, begun: Any) -> tuple[str, float] | None:
        """Close a step; returns the name and seconds of the one before, if any."""
        if not self.cuda:
            return name, time.monotonic() - begun
        done = torch.cuda.Event(enable_timing=True)
        done.record()
        before, self.open = self.open, (name, begun, done)
        if before is None:
            return None
        before[2].synchronize()
        return before[0], before[1].elapsed_time(before[2]) / 1000.0


def _phase_at(phases: tuple[Phase, ...], part: float) -> Phase:
    for phase in phases:
        if part < phase.share:
            return phase
        part -= phase.share
    return phases[-1]
