"""How to use the recommended configuration: code that loads it, and the adapter's own fields."""

from __future__ import annotations

from collections.abc import Sized

from autopeft.anatomy import UNQUANTISED
from autopeft.candidates import AdapterPlan, BaseFormat
from autopeft.methods import METHODS
from autopeft.methods.merging import why_unmergeable
from autopeft.records import TrialRecord
from autopeft.report.context import PICKS, Context, Section, fill, pretty

_PLACEHOLDER = "path/to/the/adapter"
_AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
}


def usage(context: Context) -> Section:
    """Show for each pick how it is loaded."""
    shown: dict[int, TrialRecord] = {record.number: record for record in context.picks.values()}
    blocks = [
        {
            "record": record,
            "names": context.picks_of(number),
            "load": autopeft_code(record, _adapter(context, number)),
            "peft": peft_code(context, record.plan, _adapter(context, number)) if record.plan else "",
            "config": pretty(record.plan.config) if record.plan else "",
            "values": pretty(record.candidate.values),
        }
        for number, record in shown.items()
    ]
    return Section("How to use it", fill("usage.html.j2", blocks=blocks, titles=PICKS))


def autopeft_code(record: TrialRecord, adapter: str) -> str:
    """Write Python that loads an adapter with autopeft, and that folds it into the model where that can be done."""
    lines = ["import autopeft", "", f"model = autopeft.load({adapter!r})"]
    if record.plan is not None and record.plan.method in METHODS and not why_unmergeable(record.plan):
        lines.append(f"autopeft.merge({adapter!r}, 'merged')  # a plain transformers model, no slower than the base")
    return "\n".join(lines)


def peft_code(context: Context, plan: AdapterPlan, adapter: str) -> str:
    """Write Python that loads an adapter with PEFT alone; "" for a method that PEFT lacks, or an unknown model."""
    if "peft_type" not in plan.config or context.anatomy is None:
        return ""
    name = context.info.model.get("name") or context.info.request.get("model") or "path/to/the/base"
    classify = context.anatomy.task == "text-classification"
    auto = _AUTO_CLASSES[context.anatomy.task]
    quantised = plan.bits in (4, 8)
    arguments = [repr(str(name))]
    labels = context.info.data.get("label_names")
    if classify and isinstance(labels, Sized) and not isinstance(labels, str):
        arguments.append(f"num_labels={len(labels)}")
        arguments.append("ignore_mismatched_sizes=True")  # the checkpoint may have another head, which is not used
    cuda = any(r.measurement and r.measurement.memory_kind.startswith("cuda") for r in context.complete)
    dtype = _dtype(plan.base, cuda=cuda)
    arguments.append(f"dtype=torch.{dtype}")
    if quantised:
        arguments.append(f"quantization_config={_quantised(plan.base, dtype)}")
    imports = ["AutoTokenizer", auto, *(["BitsAndBytesConfig"] if quantised else [])]
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join(sorted(imports))}",
        "",
        f"base = {auto}.from_pretrained(",
        *(f"    {argument}," for argument in arguments),
        ")",
        *(_PLAIN_KERNEL if plan.bits == 4 and not cuda else ()),
        f"model = PeftModel.from_pretrained(base, {adapter!r}).eval()",
        f"tokenizer = AutoTokenizer.from_pretrained({str(name)!r})",
    ]
    return "\n".join(lines)


_PLAIN_KERNEL = (
    "for module in base.modules():",
    "    # bitsandbytes would repack 4-bit weights for a CPU kernel, and compute something else than was judged",
    '    if hasattr(module, "support_avx512bf16_for_cpu"):',
    "        module.support_avx512bf16_for_cpu = False",
)


def _dtype(base: BaseFormat, *, cuda: bool) -> str:
    """Give what the base was judged in: of itself, a quantised one computes in fp32 on a CPU, in bf16 on a GPU."""
    if base.bits == 32:
        return "float32"
    if base.compute_dtype != "auto":
        return base.compute_dtype
    return "float32" if base.bits in (4, 8) and not cuda else "bfloat16"


def _quantised(base: BaseFormat, dtype: str) -> str:
    fields = ["load_in_8bit=True"]
    if base.bits == 4:
        fields = [
            "load_in_4bit=True",
            f'bnb_4bit_quant_type="{base.quant_type}"',
            f"bnb_4bit_use_double_quant={base.double_quant}",
            f"bnb_4bit_compute_dtype=torch.{dtype}",
        ]
    fields.append(f"llm_int8_skip_modules={list(UNQUANTISED)}")  # a task head stays whole, at 4 bits too
    return "BitsAndBytesConfig(\n" + "".join(f"        {field},\n" for field in fields) + "    )"


def _adapter(context: Context, number: int) -> str:
    return context.adapter_dirs.get(number, _PLACEHOLDER)
