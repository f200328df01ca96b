"""AFD frames: what attention and expert workers say to each other, layer by layer.

`frame` is the wire format, `parts` cuts messages above 512 KiB, `tensors` turns payloads into
tensors and back, `traces` names the attempts whose rows a frame carries, `lanes` counts credits.
Nothing here opens a connection; import from the submodules.
"""
