"""The tutorial's four files, to the letter."""

APP = """\
from vllm import LLM, SamplingParams
from transformers import AutoTokenizer

class InferlessPythonModel:
    def initialize(self):
        model_id = "rbgo/inferless-llama-3-8B"  # Specify the model repository ID for the fine-tuned model
        # Define sampling parameters for model generation
        self.sampling_params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=128)
        # Initialize the LLM object
        self.llm = LLM(model=model_id)
        self.tokenizer = AutoTokenizer.from_pretrained(model_id)
        
    def infer(self, inputs):
        prompts = inputs["prompt"]  # Extract the prompt from the input
        chat_format = [{"role": "user", "content": prompts}]
        text = self.tokenizer.apply_chat_template(chat_format, tokenize=False, add_generation_prompt=True)
        result = self.llm.generate(text, self.sampling_params)
        # Extract the generated text from the result
        result_output = [output.outputs[0].text for output in result]

        # Return a dictionary containing the result
        return {'generated_text': result_output[0]}

    def finalize(self):
        pass
"""
SCHEMA = """\
INPUT_SCHEMA = {
    "prompt": {
        'datatype': 'STRING',
        'required': True,
        'shape': [1],
        'example': ["What is AI?"]
    }
}
"""
RUNTIME = """\
build:
  cuda_version: "12.1.1"
  system_packages:
    - "libssl-dev"
  python_packages:
    - "torch==2.2.1"
    - "vllm==0.4.1"
    - "transformers==4.40.1"
"""
PROJECT = """\
version: 1.0.0
name: Llama-3
import_source: GIT
source_framework_type: PYTORCH
configuration:
  custom_runtime_id: ''
  custom_volume_id: ''
  gpu_type: A100
  inference_time: '180'
  is_dedicated: true
  is_serverless: false
  max_replica: '1'
  min_replica: '0'
  scale_down_delay: '600'
  region: region-2
env:
secrets:
optional:
  input_file_name: input.json
  output_file_name: output.json
  runtime_file_name: inferless-runtime-config.yaml
io_schema: true
model_url: https://github.com/inferless/Llama-3
provider: GITHUB
"""

FILES = {
    "app.py": APP,
    "input_schema.py": SCHEMA,
    "inferless-runtime-config.yaml": RUNTIME,
    "inferless.yaml": PROJECT,
}
