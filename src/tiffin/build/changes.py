"""(being put together)"""


def apply_changes(config, changes):
    return config.with_cmd(["sh"]) if changes else config
