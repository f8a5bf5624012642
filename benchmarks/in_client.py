"""Runs under a client's own python (clients.py calls it): opens a folder, continues a prompt, predicts a text.

    CLIENT/bin/python in_client.py CLIENT FOLDER TASK.json OUT.json

TASK.json holds token ids (`prompt`, `text`), how many to add (`new`), `dtype`, and a folder for files (`scratch`).
OUT.json: `tokens` that were added, `loss` of each prediction of the text, in nats, `versions`, or `error`.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_INT4_W4A8": "0",  # 8-bit activations inside its 4-bit kernel, otherwise its default
}
PACKAGES = {
    "vllm": ("vllm-cpu", "torch", "transformers", "compressed-tensors"),
    "transformers": ("transformers", "torch", "gptqmodel", "optimum", "compressed-tensors", "auto-round"),
    "genai": ("onnxruntime-genai", "onnxruntime", "onnx", "torch", "transformers"),
}


def vllm(folder, task):
    """vLLM's CPU build."""
    from vllm import LLM, SamplingParams

    llm = LLM(folder, dtype=task["dtype"], enforce_eager=True, max_model_len=1024, seed=0)
    greedy = SamplingParams(max_tokens=task["new"], temperature=0, ignore_eos=True)
    (made,) = llm.generate([{"prompt_token_ids": task["prompt"]}], greedy, use_tqdm=False)
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    (read,) = llm.generate([{"prompt_token_ids": task["text"]}], asked, use_tqdm=False)
    found = zip(read.prompt_logprobs[1:], task["text"][1:], strict=True)
    return list(made.outputs[0].token_ids), [-place[token].logprob for place, token in found]


def transformers(folder, task):
    """transformers, with GPTQModel and compressed-tensors installed beside it."""
    import torch
    from transformers import AutoModelForCausalLM

    where = {"gguf_file": next(Path(folder).glob("*.gguf")).name} if list(Path(folder).glob("*.gguf")) else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, task["dtype"]), device_map="cpu", output_loading_info=True, **where
    )
    bad = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(key)]
    if bad:
        raise ValueError(f"{bad[0]}: {sorted(map(str, info[bad[0]]))[:3]}")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([task["text"]])).logits[0].float()
        prompt = torch.tensor([task["prompt"]])
        options = {"max_new_tokens": task["new"], "min_new_tokens": task["new"], "do_sample": False}
        made = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    ids = torch.tensor(task["text"][1:])
    loss = -logits[:-1].log_softmax(-1).gather(1, ids[:, None])[:, 0]
    return made[0][len(task["prompt"]) :].tolist(), loss.tolist()


def genai(folder, task):
    """onnxruntime-genai: its builder makes an ONNX model of the folder, which it runs."""
    import numpy as np
    import onnxruntime_genai as og

    out = Path(task["scratch"]) / "onnx"
    exact = ["nodes_to_exclude=/lm_head/MatMul", "shared_embeddings=false", "accuracy_level=1"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", folder, "-o", str(out), "-p", "int4", "-e", "cpu", "-c", task["scratch"]]
    done = subprocess.run([*command, "--extra_options", *exact], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("builder: " + (done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    model = og.Model(str(out))

    def run(ids, new):
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, min_length=len(ids) + new, max_length=len(ids) + new)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        return generator

    generator = run(task["prompt"], task["new"])
    made = []
    while not generator.is_done() and len(made) < task["new"]:
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    # The logits of a prompt's last token alone come out: a token at a time.
    generator, loss = run(task["text"][:1], len(task["text"])), []
    for token in task["text"][1:]:
        logits = np.asarray(generator.get_logits()).reshape(-1).astype(np.float64)
        top = logits.max()
        loss.append(float(top + np.log(np.exp(logits - top).sum()) - logits[token]))
        generator.append_tokens(np.array([token], dtype=np.int32))
    return made, loss


def main():
    """One folder."""
    client, folder, task, out = sys.argv[1:]
    found = {"versions": {}}
    for name in PACKAGES[client]:
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    try:
        task = json.loads(Path(task).read_text(encoding="utf-8"))
        found["tokens"], found["loss"] = globals()[client](folder, task)
    except BaseException as error:  # what a client says is what is to be shown, whatever its class
        found["error"] = f"{type(error).__name__}: {error}"
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
