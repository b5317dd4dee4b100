"""Controls in a notebook answer while later cells run, as where all cells were started at once."""

import time
from queue import Empty

from jupyter_client.manager import start_new_kernel

BUSY = 60.0


def test_a_control_answers_while_a_cell_runs():
    """By the messages that JupyterLab sends: those of controls go to a subshell of the kernel."""
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute_interactive(
            "import ipywidgets; from rules2ranks import figures\n"
            "slider = ipywidgets.IntSlider(0)\n"
            "box = figures.live(lambda number: f'drawn {number}', number=slider)",
            timeout=BUSY,
        )
        found = client.execute("", user_expressions={"id": "slider.model_id"})
        slider = client.get_shell_msg(timeout=BUSY)
        while slider["parent_header"]["msg_id"] != found:
            slider = client.get_shell_msg(timeout=BUSY)
        slider = slider["content"]["user_expressions"]["id"]["data"]["text/plain"].strip("'")
        client.control_channel.send(client.session.msg("create_subshell_request"))
        subshell = client.get_control_msg(timeout=BUSY)["content"]["subshell_id"]

        client.execute(f"import time; time.sleep({BUSY})")
        message = client.session.msg(
            "comm_msg", {"comm_id": slider, "data": {"method": "update", "state": {"value": 7}, "buffer_paths": []}}
        )
        message["header"]["subshell_id"] = subshell
        client.shell_channel.send(message)
        assert "drawn 7" in states_until(client, "drawn 7", BUSY / 2)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def states_until(client, text: str, seconds: float) -> list[str]:
    """The values that the kernel sent to the page, until one of them is this text, or for so long."""
    seen, until = [], time.monotonic() + seconds
    while text not in seen and time.monotonic() < until:
        try:
            content = client.get_iopub_msg(timeout=1)["content"]
        except Empty:
            continue
        seen.append(content.get("data", {}).get("state", {}).get("value"))
    return seen
