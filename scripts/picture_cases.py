"""The cases of the golden vectors that are about pictures sent in, LoRAs, ControlNets and sampling."""

from typing import Any

from protocol.codec import pack
from protocol.limits import KIB
from scripts.vector_cases import (
    PNG,
    TEXT2IMG,
    Vector,
    described,
    error,
    from_orchestrator,
    raw_vector,
    request,
    response,
    vector,
)

IMAGE, MASK = {"attachment": 0}, {"attachment": 1}
LORA = {"lora_id": "hollow", "scale": 0.8}
CONTROLNET = {"controlnet_id": "edges", "image": IMAGE}
FULL_CONTROLNET = {
    **CONTROLNET, "preprocessor": "canny", "preprocessor_resolution": 512, "conditioning_scale": 0.5,
    "control_guidance_start": 0.1, "control_guidance_end": 0.9, "guess_mode": True,
}  # fmt: skip
ARTIFACT = {"artifact_id": "01934b2e-7c00-7000-8000-0000000000bb"}


def _with_pictures(
    name: str, description: str, action: str, data: dict[str, Any], count: int = 1, **outcome: Any
) -> Vector:
    header = request(action, data, attachments=described(*[("image/png", PNG)] * count))
    return vector(name, description, header, [PNG] * count, **outcome)


def requests() -> list[Vector]:
    """Requests that are taken."""
    image, sent = "inference.img2img", _with_pictures
    inpainting, controlnet = "inference.inpainting", "inference.controlnet"
    sampling = {"guidance_rescale": 0.7, "guidance_end": 0.8, "eta": 1, "sigmas": "karras", "vae_id": "fine-vae"}
    return [
        vector("sampling", "Every field about sampling.", request("inference.text2img", {**TEXT2IMG, **sampling})),
        vector("sigmas_list", "A schedule of one's own: one number for each step.",
               request("inference.text2img", {"prompt": "x", "steps": 3, "sigmas": [14.6, 2, 0.5]})),
        sent("img2img", "Change a picture.", image, {"prompt": "x", "image": IMAGE, "strength": 0.6}),
        sent("img2img_denoising_strength", "The other name of strength.", image,
             {"prompt": "x", "image": IMAGE, "denoising_strength": 0.6}),
        sent("img2img_scaled", "Scale the picture first.", image,
             {"prompt": "x", "image": IMAGE, "width": 64, "height": 96}),
        vector("img2img_artifact", "A picture that is on the server.",
               request(image, {"prompt": "x", "image": ARTIFACT})),
        vector("img2img_inline", "A small picture inside data.", request(image, {"prompt": "x", "image": PNG})),
        sent("inpainting", "Repaint the white part of the mask.", inpainting,
             {"prompt": "x", "image": IMAGE, "mask_image": MASK}, 2),
        sent("inpainting_full", "Every field of it.", inpainting,
             {"prompt": "x", "image": IMAGE, "mask_image": MASK, "strength": 0.9, "mask_blur": 0, "invert_mask": True,
              "padding_mask_crop": 32, "outpaint": {"left": 8, "right": 16, "top": 24, "bottom": 0}}, 2),
        sent("outpainting", "Widen a picture: no mask.", inpainting,
             {"prompt": "x", "image": IMAGE, "outpaint": {"right": 64}}),
        vector("lora", "With a LoRA.", request("inference.lora", {"prompt": "x", "loras": [LORA]})),
        vector("loras_most", "As many LoRAs as are allowed, from -10 to 10.",
               request("inference.text2img", {"prompt": "x", "loras": [
                   {"lora_id": f"l{index}", "scale": scale}
                   for index, scale in enumerate([-10, 10, 0, 0.5, 1, -0.5, 2, 3])]})),
        sent("controlnet", "Follow a picture.", controlnet, {"prompt": "x", "controlnets": [CONTROLNET]}),
        sent("controlnets_most", "As many ControlNets as are allowed.", controlnet,
             {"prompt": "x", "controlnets": [FULL_CONTROLNET, CONTROLNET, CONTROLNET, CONTROLNET]}),
        sent("everything_together", "LoRA and ControlNet while repainting.", inpainting,
             {"prompt": "x", "image": IMAGE, "mask_image": MASK, "loras": [LORA], "controlnets": [FULL_CONTROLNET]}, 2),
        vector("validate", "Would this run? Its picture need not be sent.",
               request("inference.validate", {"action": image, "data": {"prompt": "x", "image": IMAGE}})),
        vector("lora_list", "Which LoRAs are there?", request("lora.list", worker_id="worker-0")),
        vector("lora_load", "Load one for a model.", request("lora.load", {"lora_id": "hollow", "model_id": "demo"})),
        vector("lora_unload", "Take it out of memory.", request("lora.unload", {"lora_id": "hollow"})),
        vector("controlnet_list", "Which ControlNets are there?", request("controlnet.list")),
        sent("controlnet_preprocess", "What would the ControlNet see?", "controlnet.preprocess",
             {"image": IMAGE, "preprocessor": "canny", "resolution": 512}),
    ]  # fmt: skip


def answers() -> list[Vector]:
    """Results that have a shape of their own."""
    painted = {"attachment": 0, "media_type": "image/png", "width": 64, "height": 64, "seed": 7, "recipe": {}}
    seen = {"attachment": 1, "media_type": "image/png", "width": 64, "height": 64, "preprocessor": "canny"}
    lora = {"lora_id": "hollow", "format": "peft", "rank": 4, "targets": ["unet"], "base_model": None,
            "trigger_words": ["hollow"], "nbytes": 200_000, "loaded": True, "problem": None}  # fmt: skip
    damaged = {"controlnet_id": "old", "family": None, "nbytes": 7, "loaded": False, "problem": "The file is damaged."}
    worker = {"worker_id": "worker-0", "device_id": "cuda:0", "start_ms": 0, "load_ms": 2100, "run_ms": 900,
              "memory_bytes": 4_000_000_000, "warm": False}  # fmt: skip
    refusal = error("model_not_found", "No worker has this model.")
    say, pictures = from_orchestrator, described(("image/png", PNG), ("image/png", PNG))
    asked = {"job_id": None, "status": None}  # the orchestrator answers by itself
    return [
        say("answer_controlnet", "A picture, and what its ControlNet saw.",
            response(data={"images": [painted], "controlnet_images": [seen]}, attachments=pictures), [PNG, PNG]),
        say("answer_preprocess", "A control picture.",
            response(data={"images": [{**seen, "attachment": 0}]}, attachments=pictures[:1]), [PNG]),
        say("answer_lora_list", "A worker's LoRAs.", response(data={"loras": [lora]})),
        say("answer_lora_unload", "A LoRA that was taken out of memory.", response(data={**lora, "loaded": False})),
        say("answer_controlnet_list", "A worker's ControlNets, one of them unusable.",
            response(data={"controlnets": [damaged], "preprocessors": ["none", "canny"]})),
        say("answer_validate", "It would run, here and so long.",
            response(**asked, data={"runs": True, "error": None, "data": TEXT2IMG, "estimate_measured": True,
                                    "workers": [worker]})),
        say("answer_validate_refused", "It would be refused; asking was no error.",
            response(**asked, data={"runs": False, "error": refusal, "data": TEXT2IMG, "estimate_measured": False,
                                    "workers": []})),
    ]  # fmt: skip


def refused() -> list[Vector]:
    """Requests with a wrong field, or with a picture that did not come."""
    wrong: dict[str, Any] = {"refuse": "invalid_request"}

    def data(name: str, description: str, action: str, **fields: Any) -> Vector:
        """Two pictures come with it."""
        return _with_pictures(name, description, f"inference.{action}", {"prompt": "x", **fields}, 2, **wrong)

    def controlnet(name: str, description: str, **fields: Any) -> Vector:
        return data(f"controlnet_{name}", description, "controlnet", controlnets=[{**CONTROLNET, **fields}])

    def lora(name: str, description: str, **fields: Any) -> Vector:
        return data(f"lora_{name}", description, "lora", loras=[{**LORA, **fields}])

    nan, infinity = float("nan"), float("inf")
    inline = pack(request("inference.img2img", {"prompt": "x", "image": b""}))
    until_image = (inline.removesuffix(b"\xc4\0") + b"\xc6" + (64 * KIB + 1).to_bytes(4, "big")).hex()
    return [
        data("image_missing", "No picture to change.", "img2img"),
        data("image_null", "null is no picture.", "img2img", image=None),
        data("image_text", "A path is no picture.", "img2img", image="house.png"),
        data("image_empty", "No bytes.", "img2img", image=b""),
        raw_vector("image_64_kib", "Inline, a byte more than 64 KiB.",
                   [[[until_image, 1], ["00", 64 * KIB + 1]]], **wrong),
        data("image_two_forms", "Which of the two?", "img2img", image={**IMAGE, **ARTIFACT}),
        data("image_unknown_form", "A misspelt form.", "img2img", image={"attachement": 0}),
        data("image_attachment_text", "An index is a number.", "img2img", image={"attachment": "0"}),
        data("image_attachment_negative", "Not from the end.", "img2img", image={"attachment": -1}),
        data("image_attachment_2", "Only attachments 0 and 1 came.", "img2img", image={"attachment": 2}),
        data("mask_attachment_2", "The mask did not come.", "inpainting", image=IMAGE, mask_image={"attachment": 2}),
        controlnet("attachment_2", "The ControlNet's picture did not come.", image={"attachment": 2}),
        data("strength_twice", "One field by both its names.", "img2img", image=IMAGE, strength=0.5,
             denoising_strength=0.5),
        data("strength_above_1", "More than all.", "img2img", image=IMAGE, strength=1.1),
        data("denoising_strength_negative", "Less than nothing.", "img2img", image=IMAGE, denoising_strength=-0.1),
        data("strength_of_text2img", "There is nothing to change.", "text2img", strength=0.5),
        data("width_alone", "Both sides or neither.", "img2img", image=IMAGE, width=64),
        data("mask_missing", "Neither a mask nor a side to widen.", "inpainting", image=IMAGE),
        data("outpaint_nothing", "No side to widen, and no mask.", "inpainting", image=IMAGE, outpaint={}),
        data("outpaint_negative", "Pixels cannot be taken away.", "inpainting", image=IMAGE, outpaint={"left": -8}),
        data("mask_blur_65", "Too soft.", "inpainting", image=IMAGE, mask_image=MASK, mask_blur=65),
        data("padding_mask_crop_513", "Too many pixels.", "inpainting", image=IMAGE, mask_image=MASK,
             padding_mask_crop=513),
        data("invert_mask_number", "1 is not true.", "inpainting", image=IMAGE, mask_image=MASK, invert_mask=1),
        data("loras_missing", "inference.lora without one.", "lora"),
        data("loras_empty", "inference.lora with none.", "lora", loras=[]),
        data("loras_9", "One too many.", "text2img", loras=[{"lora_id": f"l{index}"} for index in range(9)]),
        data("loras_twice", "The same one twice.", "lora", loras=[LORA, LORA]),
        lora("scale_nan", "Not a number.", scale=nan),
        lora("scale_1000", "Far too much.", scale=1000),
        lora("scale_minus_1000", "Far too little.", scale=-1000),
        lora("id_empty", "No name.", lora_id=""),
        lora("weight", "Its name is scale.", weight=1),
        data("controlnets_missing", "inference.controlnet without one.", "controlnet"),
        data("controlnets_5", "One too many.", "text2img", controlnets=[CONTROLNET] * 5),
        controlnet("preprocessor_unknown", "A misspelt preprocessor.", preprocessor="cany"),
        controlnet("start_is_end", "It would never act.", control_guidance_start=0.5, control_guidance_end=0.5),
        controlnet("start_after_end", "It would end before it begins.", control_guidance_start=0.9,
                   control_guidance_end=0.1),
        controlnet("scale_negative", "Below 0.", conditioning_scale=-0.1),
        controlnet("scale_infinite", "Infinity.", conditioning_scale=infinity),
        controlnet("resolution_100", "Not a multiple of 8.", preprocessor_resolution=100),
        data("sigmas_word", "A misspelt rule.", "text2img", sigmas="karas"),
        data("sigmas_count", "Two numbers for three steps.", "text2img", steps=3, sigmas=[2, 1]),
        data("sigmas_end", "The 0 at the end is not to be told.", "text2img", steps=2, sigmas=[2, 0]),
        data("sigmas_rising", "They fall.", "text2img", steps=2, sigmas=[1, 2]),
        data("sigmas_nan", "Not a number.", "text2img", steps=2, sigmas=[2, nan]),
        data("sigmas_1001", "More than any job has steps.", "text2img", steps=1000,
             sigmas=[1001 - index for index in range(1001)]),
        data("guidance_end_2", "More than all steps.", "text2img", guidance_end=2),
        data("guidance_rescale_negative", "Below 0.", "text2img", guidance_rescale=-0.5),
        data("eta_2", "Above 1.", "text2img", eta=2),
        vector("validate_without_action", "Which action?", request("inference.validate", {"data": {}}), **wrong),
        vector("preprocess_without_preprocessor", "By which?",
               request("controlnet.preprocess", {"image": PNG}), **wrong),
    ]  # fmt: skip
