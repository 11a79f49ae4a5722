// Distance from scattered points: bubbles or pebbles.
void mainImage(out vec4 colour, in vec2 at) {
    vec4 n = nearest(placed(at, 1.2, 4.0), 0.9);
    float value = mix(n.x, n.y - n.x, step(0.5, random(0)));
    vec3 own = mix(palette(dice(n.zw)), palette(value * 1.5), random(1));
    colour = vec4(own * mix(1.2 - value, value + 0.2, step(0.5, random(2))), 1);
}
