// Bands of several widths and colours, straight or bent.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.0, 4.0);
    p.x += between(0, 0.0, 0.8) * sin(between(1, 0.5, 2.5) * p.y + iTime);
    float band = floor(p.x), along = p.x - band;
    vec3 flat_colour = mix(dice3(vec2(band, 0)), palette(dice(vec2(band, 7))), 0.5);
    float round_ = sqrt(max(0.0, 4.0 * along * (1.0 - along)));
    colour = vec4(flat_colour * mix(1.0, 0.3 + round_, random(2)), 1);
}
