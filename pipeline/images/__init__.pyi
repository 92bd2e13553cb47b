from .decoders import decoder_function as decoder_function
from .decoders import stated_decoder as stated_decoder
from .decoders import use_decoder as use_decoder
from .decoding import NONDETERMINISTIC as NONDETERMINISTIC
from .decoding import pixels_of as pixels_of
from .isolated import load_isolated as load_isolated
from .loading import load as load
from .resize import prepare as prepare
