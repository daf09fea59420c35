os.environ is read while app.py and its schema are imported.
-- app.py --
import os
TOKEN = os.environ["HF_TOKEN"]
os.environ["HF_HUB_ENABLE_HF_TRANSFER"] = "1"
class InferlessPythonModel:
    volume = os.getenv("NFS_VOLUME")
    def infer(self, inputs):
        return {"text": "%s %s %s" % (TOKEN, self.volume, inputs["prompt"])}
-- input_schema.py --
import os
INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": [os.environ["HF_TOKEN"]]}}
-- env --
HF_TOKEN=hf_secret
NFS_VOLUME=/var/nfs-mount/vol
-- calls --
{"prompt": "hi"} -> {"text": ["BYTES", [1], ["hf_secret /var/nfs-mount/vol hi"]]}
