// Blocks of value noise, from soft to stepped.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.0, 5.0);
    float steps = float(count(0, 3, 9)), value = noise(p + noise(2.0 * p + iTime));
    float stepped = floor(value * steps) / steps;
    colour = vec4(palette(mix(value, stepped, step(0.5, random(1))) * between(2, 0.8, 2.0)), 1);
}
